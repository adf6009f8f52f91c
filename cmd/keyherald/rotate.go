package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
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

func rotateCommand(r *remote) *cobra.Command {
	var f rotateFlags
	cmd := &cobra.Command{Use: "rotate", Short: "Have a user's managed device make a new key, put it into the KMS, and go on as if the KMS had told of it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			request, err := f.request()
			if err != nil {
				return err
			}
			c, err := r.connect()
			if err != nil {
				return err
			}
			if request.Reason.Urgent() && !f.yes {
				if err := f.confirm(cmd, c, &request); err != nil {
					return err
				}
			}
			var opened api.Rotation
			if err := c.do(cmd.Context(), http.MethodPost, "/rotations", request, &opened); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n`keyherald rotations watch %s` follows it.\n", opened.ID, opened.ID)
			return err
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

func (f rotateFlags) request() (api.RotationRequest, error) {
	request := api.RotationRequest{UserID: id.UserID(f.user), KMS: f.kms, Path: f.path, Reason: rotation.Reason(f.reason), ReplaceRecoveryKey: f.replaceRecovery}
	switch request.Reason {
	case rotation.ReasonChanged, rotation.ReasonCompromise, rotation.ReasonDisclosed:
	default:
		return request, fmt.Errorf("--reason is %q: write compromise or disclosed, or leave it out", f.reason)
	}
	for _, device := range f.exclude {
		request.Exclude = append(request.Exclude, id.DeviceID(device))
	}
	if f.grace != "" {
		grace, err := graceOf(f.grace)
		if err != nil {
			return request, fmt.Errorf("--old-backup-grace: %w", err)
		}
		request.OldBackupGrace = grace
	}
	return request, nil
}

// graceOf reads a span, in seconds.
func graceOf(text string) (*int64, error) {
	grace, err := time.ParseDuration(text)
	if err != nil || grace < 0 {
		return nil, fmt.Errorf("%q is no span of time: write 0s or 720h", text)
	}
	seconds := int64(grace / time.Second)
	return &seconds, nil
}

// confirm shows who would get the key, asks what depends on the case, and goes on with a yes alone.
func (f rotateFlags) confirm(cmd *cobra.Command, c *client, request *api.RotationRequest) error {
	out, in := cmd.OutOrStdout(), bufio.NewReader(cmd.InOrStdin())
	if err := printTargets(cmd.Context(), out, c, *request); err != nil {
		return err
	}
	_, _ = fmt.Fprint(out, "\n"+compromiseText+"\n")
	if request.OldBackupGrace == nil {
		answer, err := ask(out, in, "How long is the old key backup kept? It is deleted then, if all of it was carried over (such as 0s or 24h; empty: as the device is configured)")
		if err != nil {
			return err
		}
		if answer != "" {
			if request.OldBackupGrace, err = graceOf(answer); err != nil {
				return err
			}
		}
	}
	if !request.ReplaceRecoveryKey {
		answer, err := ask(out, in, "Is the recovery key to be replaced as well? (yes or no)")
		if err != nil {
			return err
		}
		request.ReplaceRecoveryKey = answer == "yes"
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
func printTargets(ctx context.Context, out io.Writer, c *client, request api.RotationRequest) error {
	var targets api.Page[api.Target]
	if err := c.do(ctx, http.MethodGet, userPath("/users", request.UserID.String(), "targets"), nil, &targets); err != nil {
		return err
	}
	table := newTable(out)
	_, _ = fmt.Fprintln(table, "DEVICE\tNAME\tGETS THE KEY\tPUSHED TO SINCE")
	for _, t := range targets.Items {
		gets := map[string]string{"cross_signed": "yes: it is cross-signed", "excluded": "no: excluded", "dehydrated": "no: dehydrated", "not_verified": "no: not verified"}[t.Why]
		if slices.Contains(request.Exclude, t.DeviceID) {
			gets = "no: excluded"
		}
		first := "never before"
		if t.Since != nil {
			first = when(*t.Since)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", t.DeviceID, plain(t.Name), gets, first)
	}
	return table.Flush()
}
