// Command test-tools builds the servers that tests stand on into the user's cache directory, once: the homeserver and
// the S3 store.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/keyherald/keyherald/keyheraldtest"
)

func main() {
	for _, build := range []func(context.Context, io.Writer) (string, error){keyheraldtest.DendriteBinaries, keyheraldtest.S3Binaries} {
		if _, err := build(context.Background(), os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
