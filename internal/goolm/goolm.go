//go:build goolm

// Package goolm makes a build without the tag goolm fail with a message that says what to type. Without the tag,
// mautrix would look for libolm's C headers.
package goolm

// Required is referenced by the commands.
const Required = true
