package bench

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/keyheraldtest"
)

// APIList measures how many users a second the API lists, over HTTP on the loopback, in pages of a thousand whose bodies are
// read, beside bare_sql: one statement that brings the same columns of the same users, whose rows are read and thrown away.
func APIList(ctx context.Context, users, rounds int) (rows []Row, err error) {
	name := fmt.Sprintf("api_list/%d", users)
	l, err := newListed(ctx, users)
	if l != nil {
		defer func() { err = errors.Join(err, l.close()) }()
	}
	if err != nil {
		return nil, fmt.Errorf("preparing %s: %w", name, err)
	}
	row, err := Measure(ctx, name, "1/s", More, rounds, Side{"ours", l.ours}, Side{"bare_sql", l.bare})
	return []Row{row}, err
}

// listed is the company of counted, with the API on it.
type listed struct {
	*counted
	url, token string
}

func newListed(ctx context.Context, users int) (*listed, error) {
	c, err := newCounted(ctx, users)
	l := &listed{counted: c}
	if err != nil {
		return l, err
	}
	engine, err := newEngine(c.db)
	if err != nil {
		return l, err
	}
	log, err := reader.New(reader.Config{Read: c.db, Write: c.db})
	if err != nil {
		return l, err
	}
	handler, err := api.New(api.Config{Rate: api.RateConfig{PerCaller: 1e6}}, api.Deps{DB: c.db, Engine: engine, Enforcer: c.enforcer, Reader: log, Log: zerolog.Nop()})
	if err != nil {
		return l, err
	}
	web := echo.New()
	handler.Register(web)
	server := httptest.NewServer(web)
	c.closers = append(c.closers, func() error { server.Close(); return nil })
	l.url = server.URL
	secret, err := api.CreateToken(ctx, c.db, time.Now, "bench", "admin", time.Hour, keyheraldtest.Admin())
	l.token = secret.Reveal()
	return l, err
}

// ours goes through all pages, each of which is read whole; of the bodies the cursor alone is looked at.
func (l *listed) ours(ctx context.Context) (float64, error) {
	began := time.Now()
	var bodies [][]byte
	for cursor := ""; ; {
		body, err := l.page(ctx, cursor)
		if err != nil {
			return 0, err
		}
		bodies = append(bodies, body)
		var page struct {
			NextCursor string            `json:"next_cursor"`
			Items      []json.RawMessage `json:"items"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return 0, err
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	rate := float64(l.users) / time.Since(began).Seconds()
	seen := map[string]bool{}
	for _, body := range bodies {
		var page api.Page[api.User]
		if err := json.Unmarshal(body, &page); err != nil {
			return 0, err
		}
		for _, u := range page.Items {
			seen[u.UserID.String()] = u.Rotation != nil
		}
	}
	if len(seen) != l.users {
		return 0, fmt.Errorf("%d users were listed, of %d", len(seen), l.users)
	}
	return rate, nil
}

func (l *listed) page(ctx context.Context, cursor string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url+api.Prefix+"/users?"+url.Values{"limit": {"1000"}, "cursor": {cursor}}.Encode(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+l.token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	if err = errors.Join(err, response.Body.Close()); err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("the API answers %d: %s", response.StatusCode, body)
	}
	return body, err
}

// bareUsers brings the same columns of everybody at once, by the same indexes: joined over whole tables they take longer.
const bareUsers = `SELECT u.user_id, (SELECT COUNT(*) FROM device d WHERE d.user_id = u.user_id AND d.state = 'enrolled'), r.user_id IS NOT NULL,
		n.id, n.state, n.stage, n.needs_attention, n.next_action, n.held, n.updated_at, (SELECT MAX(ended_at) FROM rotation d WHERE d.user_id = u.user_id AND d.state = 'done')
	FROM (SELECT user_id FROM device UNION SELECT user_id FROM rotation UNION SELECT user_id FROM roster) u
	LEFT JOIN roster r ON r.user_id = u.user_id
	LEFT JOIN LATERAL (SELECT * FROM rotation WHERE rotation.user_id = u.user_id ORDER BY id DESC LIMIT 1) n ON true
	ORDER BY u.user_id`

func (l *listed) bare(ctx context.Context) (rate float64, err error) {
	began := time.Now()
	tx, err := l.db.RawDB.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	// PostgreSQL would compile the statement, which takes longer than it saves.
	if _, err := tx.ExecContext(ctx, `SET LOCAL jit = off`); err != nil {
		return 0, err
	}
	n, err := throwAway(ctx, tx, bareUsers)
	if err == nil && n != l.users {
		err = fmt.Errorf("%d rows of %d users came", n, l.users)
	}
	return float64(l.users) / time.Since(began).Seconds(), err
}

// throwAway reads the rows of a statement as bytes, and counts them.
func throwAway(ctx context.Context, db interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}, statement string) (n int, err error) {
	rows, err := db.QueryContext(ctx, statement)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	columns, err := rows.Columns()
	if err != nil {
		return 0, err
	}
	cells, into := make([]sql.RawBytes, len(columns)), make([]any, len(columns))
	for i := range cells {
		into[i] = &cells[i]
	}
	for ; rows.Next(); n++ {
		if err := rows.Scan(into...); err != nil {
			return n, err
		}
	}
	return n, rows.Err()
}
