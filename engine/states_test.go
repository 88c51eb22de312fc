// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// transition is a row of the table of states in doc.go.
type transition struct{ from, to, by string }

var columns = regexp.MustCompile(`  +`)

// documentedTransitions reads that table.
func documentedTransitions(t *testing.T) (rows []transition) {
	t.Helper()
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(doc), "//\tfrom     to       by            when\n")
	if !found {
		t.Fatal("doc.go has no table of states")
	}
	for line := range strings.Lines(table) {
		row, ok := strings.CutPrefix(line, "//\t")
		if !ok {
			return rows
		}
		cells := columns.Split(strings.TrimSpace(row), 4)
		if len(cells) != 4 {
			t.Fatalf("not a row of four columns: %q", row)
		}
		rows = append(rows, transition{cells[0], cells[1], cells[2]})
	}
	return rows
}

// source is what the table of states is held against.
type source struct {
	states    []string            // constants of type State
	functions []string            // names, of methods without their types
	sets      map[string][]string // states that are published, by function
}

// readSource reads this package's files, but for its tests.
func readSource(t *testing.T) *source {
	t.Helper()
	s := &source{sets: map[string][]string{}}
	for _, file := range []string{"status.go", "statelog.go"} {
		s.readStates(t, file)
	}
	eachFunction(t, ".", func(name string, f *ast.FuncDecl) {
		name = name[strings.LastIndex(name, ".")+1:]
		s.functions = append(s.functions, name)
		ast.Inspect(f, func(n ast.Node) bool {
			if state, ok := stateSet(n); ok {
				s.sets[name] = append(s.sets[name], state)
			}
			return true
		})
	})
	return s
}

// readStates reads the constants of type State.
func (s *source) readStates(t *testing.T, path string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "State" {
				s.states = append(s.states, v.Names[0].Name)
			}
		}
		return true
	})
}

// stateSet returns the state that a call publishes.
func stateSet(n ast.Node) (state string, ok bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return "", false
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	switch f.Sel.Name {
	case "setRunning":
		return string(Running), true
	case "setState":
		if arg, ok := call.Args[0].(*ast.Ident); ok {
			return arg.Name, true
		}
	}
	return "", false
}

// TestStatesAreDocumented holds the table of states in doc.go against the source: it
// names states and functions that exist, and all functions that publish a state.
func TestStatesAreDocumented(t *testing.T) {
	rows, src := documentedTransitions(t), readSource(t)
	if len(rows) == 0 || len(src.states) != 5 || len(src.sets) == 0 {
		t.Fatalf("%d rows, states %v, published by %v: what this test reads has moved", len(rows), src.states, src.sets)
	}
	for _, row := range rows {
		if row.from != "none" && row.from != "any" && !slices.Contains(src.states, row.from) {
			t.Errorf("doc.go: %q is not a state: %+v", row.from, row)
		}
		if !slices.Contains(src.states, row.to) {
			t.Errorf("doc.go: %q is not a state: %+v", row.to, row)
		}
		if !slices.Contains(src.functions, row.by) {
			t.Errorf("doc.go: there is no function %q: %+v", row.by, row)
		}
	}
	for _, state := range src.states {
		if !slices.ContainsFunc(rows, func(row transition) bool { return row.to == state }) {
			t.Errorf("doc.go: nothing leads to %s", state)
		}
	}
	for function, states := range src.sets {
		for _, state := range states {
			if !slices.ContainsFunc(rows, func(row transition) bool { return row.by == function && row.to == state }) {
				t.Errorf("%s makes a node %s, and doc.go does not have it", function, state)
			}
		}
	}
}
