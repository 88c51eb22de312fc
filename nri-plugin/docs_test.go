// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestReadme holds the README's tables against the code, both ways: what one
// knows and the other does not is an error.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var vars []string
	for _, s := range settings() {
		vars = append(vars, s.key)
	}
	for _, tt := range []struct {
		heading string
		code    []string
	}{
		{"Annotations", annotationKeys()},
		{"Configuration", vars},
	} {
		documented := firstColumn(string(readme), tt.heading)
		for _, name := range tt.code {
			if !slices.Contains(documented, name) {
				t.Errorf("README.md, %s: no row for %s, which the code reads", tt.heading, name)
			}
		}
		for _, name := range documented {
			if !slices.Contains(tt.code, name) {
				t.Errorf("README.md, %s: %s, which the code does not read", tt.heading, name)
			}
		}
	}
}

// TestReadmeDefaults: where a row of the configuration has a default's text
// other than the code's, the README is wrong.
func TestReadmeDefaults(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range settings() {
		row := rowOf(section(string(readme), "Configuration"), s.key)
		if s.standard != "" && !strings.Contains(row, "`"+s.standard+"`") {
			t.Errorf("README.md, Configuration: the row of %s does not give its default `%s`", s.key, s.standard)
		}
	}
}

func TestFirstColumn(t *testing.T) {
	const doc = "# T\n## Annotations\ntext `x/y`\n\n| annotation | value |\n|---|---|\n| `a/b` | `c` |\n| `d`, `e` | f |\n## Other\n| `g` | h |\n"
	if got := firstColumn(doc, "Annotations"); !slices.Equal(got, []string{"a/b", "d", "e"}) {
		t.Errorf("got %q", got)
	}
	if got := firstColumn(doc, "Missing"); got != nil {
		t.Errorf("got %q", got)
	}
	if got := rowOf(section(doc, "Annotations"), "d"); got != "| `d`, `e` | f |" {
		t.Errorf("got %q", got)
	}
}

var backticked = regexp.MustCompile("`([^`]+)`")

// firstColumn lists the names in backticks in the first column of the tables
// under a heading.
func firstColumn(doc, heading string) (names []string) {
	for line := range strings.Lines(section(doc, heading)) {
		cells := strings.Split(line, "|")
		if !strings.HasPrefix(line, "|") || len(cells) < 3 {
			continue
		}
		for _, m := range backticked.FindAllStringSubmatch(cells[1], -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// rowOf is the table row whose first column has name in backticks.
func rowOf(doc, name string) string {
	for line := range strings.Lines(doc) {
		if cells := strings.Split(line, "|"); len(cells) > 2 && strings.Contains(cells[1], "`"+name+"`") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// section is the text between a heading of any level and the next one.
func section(doc, heading string) string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(doc) {
		if strings.HasPrefix(line, "#") {
			inside = strings.TrimSpace(strings.TrimLeft(line, "#")) == heading
		} else if inside {
			b.WriteString(line)
		}
	}
	return b.String()
}
