// Package kms runs the suites of package kmstest against real servers that take long to build or to install: `make kms`.
// Its tests have the build tag kms, so that `make test` leaves them out.
package kms
