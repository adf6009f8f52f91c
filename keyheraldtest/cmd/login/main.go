// Command login is a login.command: it logs one user's device in with the token of an application service that may log in as
// anybody of its namespace, and prints the access token for keyherald-device. docs/provisioning.md says who may hold such a
// token.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

func main() {
	homeserver := flag.String("homeserver", "", "the homeserver's address")
	tokenFile := flag.String("token-file", "", "the file with the application service's token")
	user := flag.String("user", "", "whom to log in")
	device := flag.String("device", "", "as which device: the same each time")
	flag.Parse()
	if err := run(context.Background(), *homeserver, *tokenFile, id.UserID(*user), id.DeviceID(*device)); err != nil {
		fmt.Fprintln(os.Stderr, "login:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, homeserver, tokenFile string, user id.UserID, device id.DeviceID) error {
	if user == "" || device == "" {
		return errors.New("-user and -device are needed")
	}
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return err
	}
	client, err := mautrix.NewClient(homeserver, "", strings.TrimSpace(string(token)))
	if err != nil {
		return err
	}
	answer, err := client.Login(ctx, &mautrix.ReqLogin{Type: mautrix.AuthTypeAppservice, DeviceID: device, InitialDeviceDisplayName: "Keyherald managed device",
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: user.String()}})
	if err != nil {
		return err
	}
	if answer.UserID != user {
		return fmt.Errorf("the login is %s's", answer.UserID)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]string{"access_token": answer.AccessToken, "device_id": answer.DeviceID.String()})
}
