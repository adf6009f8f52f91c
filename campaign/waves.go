package campaign

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"
)

// Hash binds an approval to what it is for: users and parameters, in hex.
type Hash string

// hashBytes are enough that nobody finds two campaigns of the same hash; 32 bytes in hex would pass for a key in the audit
// log.
const hashBytes = 24

// HashOf is the hash of users, in whatever order, and parameters.
func HashOf(p Parameters, users []id.UserID) (Hash, error) {
	encoded, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("encoding a campaign's parameters: %w", err)
	}
	sum := sha256.New()
	write := func(text []byte) {
		// Each with its length, so that no two lists read the same.
		_ = binary.Write(sum, binary.BigEndian, uint64(len(text)))
		_, _ = sum.Write(text)
	}
	write([]byte("keyherald campaign 1"))
	write(encoded)
	sorted := slices.Clone(users)
	slices.Sort(sorted)
	for _, user := range slices.Compact(sorted) {
		write([]byte(user))
	}
	return Hash(hex.EncodeToString(sum.Sum(nil)[:hashBytes])), nil
}

// Place is a user's place in a campaign: his wave, from 1, and his turn among all.
type Place struct {
	UserID id.UserID
	Wave   int
	Turn   int
}

// Assign gives each user his place. The order is that of a hash of the campaign's own and the user: by chance as far as the
// users are concerned, another one in each campaign, and the same whenever it is asked for, so that a dry run tells it. Each
// wave has at least one user while there are some left.
func Assign(seed Hash, users []id.UserID, waves []int) []Place {
	type ranked struct {
		user id.UserID
		rank [sha256.Size]byte
	}
	order := make([]ranked, len(users))
	for i, user := range users {
		order[i] = ranked{user, sha256.Sum256([]byte(string(seed) + " " + string(user)))}
	}
	slices.SortFunc(order, func(a, b ranked) int { return bytes.Compare(a.rank[:], b.rank[:]) })
	places := make([]Place, len(users))
	begun := 0
	for w, percent := range waves {
		until := max((len(users)*percent+99)/100, min(begun+1, len(users)))
		for ; begun < until; begun++ {
			places[begun] = Place{order[begun].user, w + 1, begun + 1}
		}
	}
	return places
}
