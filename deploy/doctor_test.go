// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestGuideRemedies: each remedy of the doctor is a line of the guide, by its own
// text, and each line below the doctor's heading is a remedy or what a check has seen.
func TestGuideRemedies(t *testing.T) {
	remedies, _ := doctorRemedies(t)
	if len(remedies) < 30 {
		t.Fatalf("the doctor has %d remedies, which are not all", len(remedies))
	}
	text := read(t, guide)
	_, below, _ := strings.Cut(text, "\n## The doctor's findings\n")
	below, _, _ = strings.Cut(below, "\n## ")
	quotes := blocks(below, "text")
	for name, remedy := range remedies {
		if !slices.Contains(quotes, remedy) {
			t.Errorf("%s has no line %q (%s)", guide, remedy, name)
		}
	}
	sources := regexp.MustCompile(`/(internal/doctor/[a-z_]*|trial|inspect)\.go:`)
	says := map[string]bool{}
	for _, s := range reasons(t) {
		says[s.text] = says[s.text] || sources.MatchString(s.at)
	}
	for _, remedy := range remedies {
		says[remedy] = true
	}
	for _, quote := range quotes {
		if !says[quote] {
			t.Errorf("%s has the line %q, which the doctor does not say", guide, quote)
		}
	}
}

// TestDoctorNamesRemedies: each warning and each failure has a remedy that the guide
// explains, and each remedy is used.
func TestDoctorNamesRemedies(t *testing.T) {
	remedies, used := doctorRemedies(t)
	if len(used) < 30 {
		t.Fatalf("%d findings were found, which are not all", len(used))
	}
	for _, name := range used {
		if _, ok := remedies[name]; !ok {
			t.Errorf("a finding's remedy is %s, which is not in remedies.go", name)
		}
	}
	for name := range remedies {
		if !slices.Contains(used, name) {
			t.Errorf("no finding has the remedy %s", name)
		}
	}
}

// doctorRemedies are the constants of remedies.go, and what the calls of warn
// and fail in the doctor's sources have for a remedy.
func doctorRemedies(t *testing.T) (remedies map[string]string, used []string) {
	t.Helper()
	remedies = map[string]string{}
	files, err := filepath.Glob("../nri-plugin/internal/doctor/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if filepath.Base(path) == "remedies.go" {
					remedies[n.Names[0].Name] = textOf(n.Values[0])
				}
			case *ast.CallExpr:
				if name, ok := n.Fun.(*ast.Ident); ok && (name.Name == "warn" || name.Name == "fail") {
					used = append(used, nameOf(n.Args[len(n.Args)-1]))
				}
			}
			return true
		})
	}
	return remedies, used
}

func nameOf(e ast.Expr) string {
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return "no name"
}
