package tamper

import "testing"

func TestACaseCounts(t *testing.T) {
	at := func(first, last int64, verdict string) report {
		return report{Verdict: verdict, Findings: []finding{{Verdict: verdict, First: &first, Last: &last}}}
	}
	attacked := attack{want: altered, leaf: 5, first: 4, last: 7}
	bySigner := attack{want: unchanged, signer: diverged}
	honest := attack{want: gap, honest: true}
	inPlace := attack{want: unchanged, inPlace: true, leaf: 5, first: 4, last: 5}
	fine := report{Verdict: unchanged}
	for name, test := range map[string]struct {
		a    attack
		saw  seen
		good bool
	}{
		"as detected where the verdict and the place are right":            {attacked, seen{with: at(5, 6, altered)}, true},
		"as undetected where the verifier calls it unchanged":              {attacked, seen{with: fine}, false},
		"as undetected where only the verifier without a checkpoint says":  {attacked, seen{alone: at(5, 5, altered), with: fine}, false},
		"as undetected where another verdict is given":                     {attacked, seen{with: at(5, 5, rolledBack)}, false},
		"as undetected where the place is another":                         {attacked, seen{with: at(6, 7, altered)}, false},
		"as undetected where the place is too wide":                        {attacked, seen{with: at(0, 7, altered)}, false},
		"as undetected where a remark alone names the place":               {attacked, seen{with: report{Verdict: altered, Findings: []finding{at(5, 5, "remark").Findings[0]}}}, false},
		"as detected where the signer stops":                               {bySigner, seen{with: fine, signer: signed{word: diverged, says: "the first 9 events"}}, true},
		"as undetected where the signer signs":                             {bySigner, seen{with: fine, signer: signed{word: signs}}, false},
		"as undetected where the signer stops for something else":          {bySigner, seen{with: fine, signer: signed{word: refuses, says: "no sink of 9 events"}}, false},
		"as undetected where the signer names nothing":                     {bySigner, seen{with: fine, signer: signed{word: diverged, says: "no"}}, false},
		"as detected where the signer and the database's verifier name it": {inPlace, seen{with: fine, inPlace: at(4, 5, altered), signer: signed{word: inspected, found: at(4, 5, altered)}}, true},
		"as undetected where the database's own verifier names another":    {inPlace, seen{with: fine, inPlace: at(2, 3, altered), signer: signed{word: inspected, found: at(4, 5, altered)}}, false},
		"as undetected where the signer looks over it and names another":   {inPlace, seen{with: fine, inPlace: at(4, 5, altered), signer: signed{word: inspected, found: at(2, 3, altered)}}, false},
		"as undetected where the signer finds nothing":                     {inPlace, seen{with: fine, inPlace: at(4, 5, altered), signer: signed{word: signs}}, false},
		"as quiet where all say what it is": {honest,
			seen{with: at(5, 5, gap), after: at(5, 5, gap), inPlace: fine, signer: signed{word: signs}}, true},
		"as a false alarm where it is called altered":                {honest, seen{with: at(5, 5, altered), after: at(5, 5, gap), inPlace: fine, signer: signed{word: signs}}, false},
		"as a false alarm where it is called altered afterwards":     {honest, seen{with: at(5, 5, gap), after: at(5, 5, altered), inPlace: fine, signer: signed{word: signs}}, false},
		"as a false alarm where the database's own verifier says so": {honest, seen{with: at(5, 5, gap), after: at(5, 5, gap), inPlace: at(5, 5, altered), signer: signed{word: signs}}, false},
		"as a false alarm where the signer stops": {honest,
			seen{with: at(5, 5, gap), after: at(5, 5, gap), inPlace: fine, signer: signed{word: wentBack, says: "9 events"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if problem := test.saw.judge(test.a); (problem == "") != test.good {
				t.Errorf("judged %q", problem)
			}
		})
	}
}
