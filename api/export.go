package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/reader"
	"github.com/keyherald/keyherald/audit/report"
)

const (
	// maxExporting is how many exports and reports a replica makes at once: each reads all of the log, in a transaction.
	maxExporting = 2
	// exportTime is how long one may take, so that a caller who reads slowly holds no old snapshot of the database.
	exportTime = 15 * time.Minute
)

// The headers that say what an export is of.
const (
	HeaderLogSize         = "Keyherald-Log-Size"
	HeaderUnsealed        = "Keyherald-Unsealed"
	HeaderCheckpointSize  = "Keyherald-Checkpoint-Size"
	HeaderCheckpointEpoch = "Keyherald-Checkpoint-Epoch"
	// HeaderVerdict is what a report says of the log's integrity, in a word.
	HeaderVerdict = "Keyherald-Verdict"
)

// kindOf are the media types of an export.
var kindOf = map[audit.Format]string{audit.FormatJSONLines: "application/jsonl", audit.FormatOCSF: "application/jsonl", audit.FormatCSV: "text/csv; charset=utf-8", audit.FormatBundle: "application/zip"}

// exportLog puts out the sealed events of one moment as they are read. Where it cannot be ended the connection is broken off
// instead, so that a part is not taken for the whole.
func exportLog(c *call) *Problem {
	q := c.query()
	e := reader.Export{Format: audit.Format(q.text("format"))}
	e.Since, e.Until = q.period(c.deps.Now())
	if err := q.end(); err != nil {
		return c.problemOf(err)
	}
	return c.export(func(ctx context.Context) error {
		return c.deps.Reader.Export(ctx, c.caller.actor, e, func(at reader.Moment, encode func(io.Writer) (int64, error)) error {
			header := c.echo.Response().Header()
			header.Set(HeaderLogSize, strconv.FormatInt(at.Size, 10))
			header.Set(HeaderUnsealed, strconv.FormatInt(at.Unsealed, 10))
			header.Set(HeaderCheckpointSize, strconv.FormatInt(at.Newest.Size, 10))
			header.Set(HeaderCheckpointEpoch, strconv.Itoa(at.Newest.Epoch))
			return c.putOut(kindOf[e.Format], func(to io.Writer) error {
				_, err := encode(to)
				return err
			})
		})
	})
}

// getReport is the report of a period: a page, or with Accept: text/csv its rotations.
func getReport(c *call) *Problem {
	q := c.query()
	var span report.Period
	span.From, span.To = q.period(c.deps.Now())
	for _, name := range []string{"since", "until"} {
		if q.values.Get(name) == "" {
			q.fail(name, "a report is of a period: write its first and its last day")
		}
	}
	if err := q.end(); err != nil {
		return c.problemOf(err)
	}
	return c.export(func(ctx context.Context) error {
		page, err := c.deps.Reader.Report(ctx, c.caller.actor, span)
		if err != nil {
			return err
		}
		c.echo.Response().Header().Set(HeaderVerdict, string(page.Integrity.Verdict))
		if c.accepts("text/csv") {
			return c.putOut(kindOf[audit.FormatCSV], func(to io.Writer) error { return report.CSV(to, page.Facts) })
		}
		// What stands in the page was written by others; it has no scripts, and needs none.
		c.echo.Response().Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
		return c.putOut("text/html; charset=utf-8", func(to io.Writer) error { return report.HTML(to, page) })
	})
}

// export has one of few at a time put something out.
func (c *call) export(do func(ctx context.Context) error) *Problem {
	ctx, cancel := context.WithTimeout(c.ctx, exportTime)
	defer cancel()
	err := c.oneOf(c.exporting, func() error { return do(ctx) })
	switch {
	case err == nil:
		return nil
	case !c.echo.Response().Committed:
		return c.problemOf(err)
	case c.ctx.Err() == nil:
		c.deps.Log.Warn().Err(err).Str("operation", c.route.Operation).Msg("An export was broken off")
	}
	panic(http.ErrAbortHandler)
}

// putOut answers with what write writes. What goes wrong within the first 64 KiB is a problem to answer with.
func (c *call) putOut(kind string, write func(to io.Writer) error) error {
	late := &lateAnswer{call: c, kind: kind}
	buffered := bufio.NewWriterSize(late, 64<<10)
	if err := write(buffered); err != nil {
		return err
	}
	late.begin() // also where there is nothing
	return buffered.Flush()
}

// lateAnswer begins with its first byte.
type lateAnswer struct {
	call *call
	kind string
	to   *streamed
}

func (a *lateAnswer) begin() {
	if a.to == nil {
		to := a.call.streamed(a.kind)
		a.to = &to
	}
}

func (a *lateAnswer) Write(raw []byte) (int, error) {
	a.begin()
	return a.to.Write(raw)
}

// getProof proves that an event is in the log.
func getProof(c *call) (answer, error) {
	if err := c.query().end(); err != nil {
		return answer{}, err
	}
	record, err := c.event()
	if err != nil {
		return answer{}, err
	}
	var proof []byte
	err = c.readLog(func() error {
		proof, err = c.deps.Reader.Prove(c.ctx, c.caller.actor, record)
		return err
	})
	return answer{status: http.StatusOK, raw: proof, kind: "text/plain; charset=utf-8"}, err
}

// getCheckpoint is a signed checkpoint, for whoever wants to keep one. It says nothing of what is in the log.
func getCheckpoint(c *call) (answer, error) {
	q := c.query()
	epoch, size := q.number("epoch"), q.number("size")
	if err := q.end(); err != nil {
		return answer{}, err
	}
	if epoch > 1<<30 {
		return answer{}, malformed(fmt.Sprintf("the parameter epoch is %d: there are not so many", epoch))
	}
	note, err := c.deps.Reader.Checkpoint(c.ctx, int(epoch), size)
	return answer{status: http.StatusOK, raw: []byte(note), kind: "text/plain; charset=utf-8"}, err
}

// Log is how far the audit log is sealed.
type Log struct {
	Name string `json:"name"`
	// Size is how many events are sealed, and Unsealed how many are not yet.
	Size     int64 `json:"size"`
	Unsealed int   `json:"unsealed"`
	// Checkpoint is the newest; nil where there is none.
	Checkpoint *reader.Checkpoint `json:"checkpoint,omitempty"`
}

func getLog(c *call) (answer, error) {
	if err := c.query().end(); err != nil {
		return answer{}, err
	}
	log := Log{Name: c.deps.Reader.LogName()}
	err := c.deps.DB.Snapshot(c.ctx, func(in context.Context) error {
		state, err := c.deps.DB.TreeState(in)
		if err != nil {
			return err
		}
		log.Size = state.Size
		if log.Unsealed, _, err = c.deps.DB.Unsealed(in); err != nil {
			return err
		}
		newest, found, err := c.deps.DB.NewestCheckpoint(in, 0)
		if found {
			log.Checkpoint = c.deps.Reader.Named(newest)
		}
		return err
	})
	return ok(log), err
}
