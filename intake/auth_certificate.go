package intake

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"net/url"
	"slices"

	"github.com/keyherald/keyherald/audit"
)

// maxChain bounds the certificates that a client may show.
const maxChain = 8

// clientCertificate recognises a TLS client certificate: from the connection itself, or, where TLS ends at one of our own
// proxies, from the header in which that puts the certificate after it saw the proof of its key.
func clientCertificate(authorities *x509.CertPool, names []string, header string, proxies []netip.Prefix) check {
	return func(_ context.Context, r *request) (string, *denial) {
		var chain []*x509.Certificate
		if header == "" {
			if r.http.TLS != nil {
				chain = r.http.TLS.PeerCertificates
			}
		} else {
			address, ok := peer(r)
			if !ok || !within(address, proxies) {
				return "", refused(audit.RefusedAddress)
			}
			if value := r.header.Get(header); value != "" {
				if chain = forwarded(value); len(chain) == 0 {
					return "", refused(audit.RefusedCertificate)
				}
			}
		}
		if len(chain) == 0 {
			return "", refused(audit.RefusedNoCredentials)
		}
		if len(chain) > maxChain {
			return "", refused(audit.RefusedCertificate)
		}
		intermediates := x509.NewCertPool()
		for _, certificate := range chain[1:] {
			intermediates.AddCert(certificate)
		}
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: authorities, Intermediates: intermediates, CurrentTime: r.now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			return "", refused(audit.RefusedCertificate)
		}
		for _, name := range certificateNames(chain[0]) {
			if slices.Contains(names, name) {
				return "mtls:" + name, nil
			}
		}
		return "", refused(audit.RefusedCertificate)
	}
}

// forwarded reads certificates in PEM, URL-encoded as nginx's $ssl_client_escaped_cert is.
func forwarded(value string) []*x509.Certificate {
	text, err := url.PathUnescape(value)
	if err != nil {
		return nil
	}
	var chain []*x509.Certificate
	for rest := []byte(text); len(chain) <= maxChain; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return chain
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return nil
		}
		chain = append(chain, certificate)
	}
	return chain
}

// certificateNames are those a configuration may name: the alternative names, and the common name where there are none.
func certificateNames(c *x509.Certificate) []string {
	names := slices.Concat(c.DNSNames, c.EmailAddresses)
	for _, uri := range c.URIs {
		names = append(names, uri.String())
	}
	if len(names) == 0 {
		names = append(names, c.Subject.CommonName)
	}
	return names
}
