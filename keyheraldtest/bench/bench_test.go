package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// script is a side whose rounds give these figures, the first one warming up.
func script(name string, figures ...float64) Side {
	return Side{name, func(context.Context) (float64, error) {
		if len(figures) == 0 {
			return 0, errors.New("no figure left")
		}
		figure := figures[0]
		figures = figures[1:]
		return figure, nil
	}}
}

func TestARatioIsTurnedSoThatMoreIsBetterForUs(t *testing.T) {
	for _, test := range []struct {
		name   string
		better Better
		want   float64
	}{
		{"half the duration is twice as good", Less, 2},
		{"half the rate is half as good", More, 0.5},
	} {
		t.Run(test.name, func(t *testing.T) {
			row, err := Measure(t.Context(), "x", "ms", test.better, 3, script("ours", 1000, 7, 5, 1), script("other", 1000, 10, 12, 2))
			if err != nil {
				t.Fatal(err)
			}
			if row.Ours != 5 || row.Beside["other"] != 10 || row.Ratio["other"] != test.want {
				t.Errorf("got %+v", row)
			}
		})
	}
}

func TestARoundThatFailsFailsTheBenchmark(t *testing.T) {
	if _, err := Measure(t.Context(), "x", "ms", Less, 3, script("ours", 1, 2), script("other", 1, 2)); err == nil {
		t.Error("a figure was made up")
	}
}

func TestResultsKeepTheRowsThatWereNotMeasuredThisTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench", "results.json")
	row := func(name string, ours float64) Row {
		return Compare(name, "ms", Less, []float64{ours}, map[string][]float64{"other": {6}})
	}
	for _, rows := range [][]Row{{row("a", 1), row("b", 2)}, {row("b", 3), row("c", 4)}} {
		if err := Write(path, rows); err != nil {
			t.Fatal(err)
		}
	}
	got, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Row{row("a", 1), row("b", 3), row("c", 4)}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestResultsThatCannotBeReadAreNotWrittenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	if err := os.WriteFile(path, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, nil); err == nil {
		t.Error("what could not be read was written over")
	}
}

func TestTheMedianOfAnEvenNumberIsBetweenTheMiddleTwo(t *testing.T) {
	if got := median([]float64{4, 1, 3, 100}); got != 3.5 {
		t.Errorf("got %v", got)
	}
}

// The benchmark itself fails where somebody is in another state than he was put into, or is not told of.
func TestComplianceIsMeasuredOnARosterThatIsCountedRight(t *testing.T) {
	rows, err := Compliance(t.Context(), 500, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || rows[0].Ours <= 0 || rows[0].Beside["bare_sql"] <= 0 {
		t.Errorf("got %+v", rows)
	}
}

// The benchmark itself fails where the verifier finds fault with the untouched log, or reads less than all of it.
func TestTheVerifierIsMeasuredOnALogThatItVerifies(t *testing.T) {
	rows, err := AuditVerify(t.Context(), 1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row.Ours <= 0 || len(row.Beside) == 0 {
			t.Errorf("got %+v", row)
		}
	}
	if len(rows) != 4 {
		t.Errorf("got %d rows", len(rows))
	}
}
