// Package cidr reads the address ranges of a configuration: proxies of our own, and where senders may call from.
package cidr

import (
	"fmt"
	"net/netip"
)

// Parse reads address ranges; a single address is a range too. at is the key that they stand under, for the error. What is
// no range as it is written, such as 192.0.2.7/24, is refused: whoever wrote it meant something else.
func Parse(at string, texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for i, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if address, addressErr := netip.ParseAddr(text); addressErr == nil && address.Zone() == "" {
			prefix, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		if err != nil || prefix.Addr().Is4In6() || prefix != prefix.Masked() {
			return nil, fmt.Errorf("%s[%d] is %q: write an address or a range of them, such as 192.0.2.0/24", at, i, text)
		}
		all = append(all, prefix)
	}
	return all, nil
}
