package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyherald/keyherald/kms/kmsconfig"
	"github.com/keyherald/keyherald/kms/policy"
)

func kmsCommand(load func() (config, error)) *cobra.Command {
	var place policy.Place
	var user, side, account string
	print := &cobra.Command{Use: "policy [KMS]", Short: "Print the least rights that the server and a managed device need in a KMS, in its own language", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			names := args
			if len(names) == 0 {
				names = slices.Sorted(maps.Keys(c.KMS))
			}
			if err := place.Check(); err != nil {
				return err
			}
			if user != "" {
				if err := policy.CheckUser(user); err != nil {
					return err
				}
			}
			if side != "" && (side != "server" && side != "device" || len(names) != 1) {
				return errors.New("--for is server or device, of one KMS: keyherald kms policy corporate --for server")
			}
			for _, name := range names {
				k, ok := c.KMS[name]
				if !ok {
					return fmt.Errorf("no KMS is named %q under kms: there are %s", name, strings.Join(slices.Sorted(maps.Keys(c.KMS)), ", "))
				}
				rights, err := k.rights(place, user, account)
				if err != nil {
					return fmt.Errorf("kms.%s: %w", name, err)
				}
				if err := rights.print(cmd.OutOrStdout(), name, side); err != nil {
					return err
				}
			}
			return nil
		}}
	print.Flags().StringVar(&place.Path, "path", "", "where the users' keys are, with {user} for a user's name, such as keyherald/{user}/backup-key")
	print.Flags().StringVar(&place.RecoveryPath, "recovery-path", "", "where devices keep the recovery keys of identities they make, if they do")
	print.Flags().BoolVar(&place.RecoveryRead, "recovery-read", false, "let devices read there what they put, so that one that was killed while it did finds out whether it did")
	print.Flags().BoolVar(&place.RecoveryReplace, "recovery-replace", false, "let devices put recovery keys that replace others below --recovery-path, each under its id")
	print.Flags().BoolVar(&place.Write, "write", false, "let devices write the keys they generate")
	print.Flags().StringVar(&user, "user", "", "the device's user; left out, the policy is a template for all users where the KMS has such")
	print.Flags().StringVar(&side, "for", "", "print one policy alone: server or device")
	print.Flags().StringVar(&account, "account", "*", "the AWS account")
	_ = print.MarkFlagRequired("path")
	cmd := &cobra.Command{Use: "kms", Short: "The key-management systems"}
	cmd.AddCommand(print)
	return cmd
}

// rights are the policies of one KMS, and what to do with them.
type rights struct{ server, device, how string }

func (r rights) print(out io.Writer, name, side string) error {
	text := fmt.Sprintf("# %s: %s\n\n# The server's:\n%s\n# A managed device's:\n%s\n", name, r.how, r.server, r.device)
	switch side {
	case "server":
		text = r.server
	case "device":
		text = r.device
	}
	_, err := io.WriteString(out, text)
	return err
}

func (k kmsConfig) rights(place policy.Place, user, account string) (rights, error) {
	or := func(template string) string {
		if user == "" {
			return template
		}
		return user
	}
	switch k.Type {
	case kmsconfig.Vault:
		mount := strings.TrimSuffix(k.Mount, "/")
		if mount == "" {
			mount = "secret"
		}
		return rights{policy.VaultServer(mount, place), policy.VaultDevice(mount, place, or(policy.VaultIdentity)),
			"`vault policy write NAME -` or `bao policy write NAME -` takes each on its standard input. The template needs an entity of the user's name for each device's login."}, nil
	case kmsconfig.AWS:
		where := fmt.Sprintf("%s:secretsmanager:%s:%s", partition(k.Region), k.Region, account)
		return rights{policy.AWSServer(where, place), policy.AWSDevice(where, place, or(policy.AWSUser)),
			"identity policies. The template needs the tag matrix_user on each device's principal. Where a key of your own encrypts the secrets, devices need kms:Decrypt with it as well, and kms:GenerateDataKey to write; the server needs neither."}, nil
	case kmsconfig.Setec:
		if user == "" {
			return rights{}, errors.New("setec's rules have no place for a user's name, so each device has its own: say --user alice")
		}
		return rights{policy.SetecServer(place), policy.SetecDevice(place, user), "grants of the tailnet's policy file; change the tags to yours."}, nil
	}
	return rights{}, errors.New("the directory KMS has no policies but the modes of its files, and is for development")
}

// partition is the part of AWS that a region is in.
func partition(region string) string {
	for prefix, name := range map[string]string{"cn-": "aws-cn", "us-gov-": "aws-us-gov", "us-iso-": "aws-iso", "us-isob-": "aws-iso-b"} {
		if strings.HasPrefix(region, prefix) {
			return name
		}
	}
	return "aws"
}
