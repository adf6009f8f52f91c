package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/crosssigning"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
	"github.com/keyherald/keyherald/rotation"
)

// compromiseText says what a new key is no help against.
const compromiseText = `What this protects: room keys that are backed up from now on, and new devices that restore from the key backup.
What it does not protect:
- what could be read with the old key until now, which whoever has it has read or copied;
- room keys that a stolen device holds itself: log it out of the user's account as well;
- the account, if its password, its recovery key or its cross-signing keys are known: change them, and reset the identity;
- a device that is excluded but still logged in: it gets no key from the managed device, and may ask the user's others.
`

type rotateFlags struct {
	user, kms, path string
	exclude         []string
	reason          string
	grace           string
	replaceRecovery bool
	yes             bool
}

func rotateCommand(load func() (config, error)) *cobra.Command {
	var f rotateFlags
	cmd := &cobra.Command{Use: "rotate", Short: "Have a user's managed device make a new key, put it into the KMS, and go on as if the KMS had told of it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			request, err := f.request()
			if err != nil {
				return err
			}
			return withEngine(cmd.Context(), load, func(db *postgres.DB, engine *relay.Engine) error {
				if request.Reason.Urgent() && !f.yes {
					if err := f.confirm(cmd, c, db, &request); err != nil {
						return err
					}
				}
				key, err := engine.Rotate(cmd.Context(), request, localActor())
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n`keyherald rotations watch %s` follows it.\n", key, key)
				return err
			})
		}}
	flags := cmd.Flags()
	flags.StringVar(&f.user, "user", "", "the user's id, such as @alice:example.org")
	flags.StringVar(&f.kms, "kms", "", "the KMS, where the user had no rotation yet")
	flags.StringVar(&f.path, "path", "", "the path of the key, where the user had no rotation yet")
	flags.StringArrayVar(&f.exclude, "exclude-device", nil, "a device that gets no key, by this push or a later one, until `keyherald devices include`")
	flags.StringVar(&f.reason, "reason", "", "compromise, where somebody else may have the key: it asks before it goes on; or disclosed")
	flags.StringVar(&f.grace, "old-backup-grace", "", "how long the old key backup is kept, such as 0s or 720h; default: as the device's account file says")
	flags.BoolVar(&f.replaceRecovery, "replace-recovery-key", false, "have the device make a new recovery key as well")
	flags.BoolVar(&f.yes, "yes", false, "do not ask")
	_ = cmd.MarkFlagRequired("user")
	return cmd
}

func (f rotateFlags) request() (relay.RotateRequest, error) {
	request := relay.RotateRequest{UserID: id.UserID(f.user), KMS: f.kms, Path: f.path, Reason: rotation.Reason(f.reason), ReplaceRecovery: f.replaceRecovery}
	switch request.Reason {
	case rotation.ReasonChanged, rotation.ReasonCompromise, rotation.ReasonDisclosed:
	default:
		return request, fmt.Errorf("--reason is %q: write compromise or disclosed, or leave it out", f.reason)
	}
	for _, device := range f.exclude {
		request.Exclude = append(request.Exclude, id.DeviceID(device))
	}
	if f.grace != "" {
		grace, err := time.ParseDuration(f.grace)
		if err != nil || grace < 0 {
			return request, fmt.Errorf("--old-backup-grace is %q: write a span such as 0s or 720h", f.grace)
		}
		request.OldBackupGrace = &grace
	}
	return request, nil
}

// confirm shows who would get the key, asks what depends on the case, and goes on with a yes alone.
func (f rotateFlags) confirm(cmd *cobra.Command, c config, db *postgres.DB, request *relay.RotateRequest) error {
	out, in := cmd.OutOrStdout(), bufio.NewReader(cmd.InOrStdin())
	if err := printTargets(cmd.Context(), out, c, db, *request); err != nil {
		return err
	}
	_, _ = fmt.Fprint(out, "\n"+compromiseText+"\n")
	if request.OldBackupGrace == nil {
		answer, err := ask(out, in, "How long is the old key backup kept? It is deleted then, if all of it was carried over (such as 0s or 24h; empty: as the device is configured)")
		if err != nil {
			return err
		}
		if answer != "" {
			grace, err := time.ParseDuration(answer)
			if err != nil || grace < 0 {
				return fmt.Errorf("%q is no span of time: write 0s or 24h", answer)
			}
			request.OldBackupGrace = &grace
		}
	}
	if !request.ReplaceRecovery {
		answer, err := ask(out, in, "Is the recovery key to be replaced as well? (yes or no)")
		if err != nil {
			return err
		}
		request.ReplaceRecovery = answer == "yes"
	}
	answer, err := ask(out, in, "Rotate now, with the devices above? (yes or no)")
	if err != nil {
		return err
	}
	if answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

func ask(out io.Writer, in *bufio.Reader, question string) (string, error) {
	_, _ = fmt.Fprintf(out, "%s: ", question)
	line, err := in.ReadString('\n')
	if err != nil && (line == "" || !errors.Is(err, io.EOF)) {
		return "", errors.New("there is nobody to ask: run it on a terminal, or name everything in flags and write --yes")
	}
	return strings.TrimSpace(line), nil
}

// printTargets lists the user's devices as the homeserver has them now: who would get the key, and since when the log
// knows each as one that does.
func printTargets(ctx context.Context, out io.Writer, c config, db *postgres.DB, request relay.RotateRequest) error {
	registration, err := appservice.LoadRegistration(c.Registration)
	if err != nil {
		return err
	}
	client, err := mautrix.NewClient(c.Homeserver, c.Bot.UserID, registration.ASToken)
	if err != nil {
		return fmt.Errorf("asking the homeserver for the user's devices: %w", err)
	}
	client.DefaultHTTPRetries = 0
	limited, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	answer, err := client.QueryKeys(limited, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{request.UserID: mautrix.DeviceIDList{}}, Timeout: 10_000})
	if err != nil {
		return fmt.Errorf("asking the homeserver for the user's devices: %w", err)
	}
	excluded, err := db.Excluded(ctx, []id.UserID{request.UserID})
	if err != nil {
		return err
	}
	since, err := db.TargetsSince(ctx, request.UserID)
	if err != nil {
		return err
	}
	identity := crosssigning.Read(answer, request.UserID)
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "DEVICE\tNAME\tGETS THE KEY\tPUSHED TO SINCE")
	for _, deviceID := range slices.Sorted(maps.Keys(identity.Devices)) {
		d := identity.Devices[deviceID]
		gets := "yes: it is cross-signed"
		switch {
		case slices.Contains(request.Exclude, deviceID) || slices.Contains(excluded[request.UserID], deviceID):
			gets = "no: excluded"
		case d.Dehydrated:
			gets = "no: dehydrated"
		case !d.CrossSigned:
			gets = "no: not verified"
		}
		name, _ := answer.DeviceKeys[request.UserID][deviceID].Unsigned["device_display_name"].(string)
		first := "never before"
		if at, ok := since[deviceID]; ok {
			first = when(at)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", deviceID, name, gets, first)
	}
	return table.Flush()
}

func includeCommand(load func() (config, error)) *cobra.Command {
	var userID, deviceID string
	cmd := &cobra.Command{Use: "include", Short: "Lift an exclusion: the device gets the key again, with the user's next rotation or `keyherald rotations repeat`", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withEngine(cmd.Context(), load, func(_ *postgres.DB, engine *relay.Engine) error {
				return engine.Include(cmd.Context(), id.UserID(userID), id.DeviceID(deviceID), localActor())
			})
		}}
	cmd.Flags().StringVar(&userID, "user", "", "the user's id")
	cmd.Flags().StringVar(&deviceID, "device", "", "the device's id")
	_ = cmd.MarkFlagRequired("user")
	_ = cmd.MarkFlagRequired("device")
	return cmd
}
