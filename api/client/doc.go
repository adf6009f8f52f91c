// Package client calls the API. It is generated from api/openapi.yaml, and shows that others can be: `go generate
// ./api/client` after the document has changed.
package client

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config client.yaml ../openapi.yaml
