// Command dendrite-build builds the tests' homeserver into the user's cache directory, once.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/keyherald/keyherald/keyheraldtest"
)

func main() {
	if _, err := keyheraldtest.DendriteBinaries(context.Background(), os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
