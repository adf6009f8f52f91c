package cidr

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestRangesAreReadAsTheyAreWritten(t *testing.T) {
	got, err := Parse("x", []string{"192.0.2.0/24", "192.0.2.7", "2001:db8::/32", "2001:db8::1"})
	want := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2001:db8::1/128")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("they are %v (%v)", got, err)
	}
	for _, wrong := range []string{"", "proxy.example.org", "192.0.2.7/24", "192.0.2.0/33", "::ffff:192.0.2.1", "fe80::1%eth0", "192.0.2.0/24 "} {
		if _, err := Parse("trusted_proxies", []string{"192.0.2.1", wrong}); err == nil || !strings.HasPrefix(err.Error(), "trusted_proxies[1] is ") {
			t.Errorf("%q is answered with %v", wrong, err)
		}
	}
}
