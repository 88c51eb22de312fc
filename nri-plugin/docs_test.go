// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

const (
	readmePage   = "../README.md"
	settingsPage = "../deploy/SETTINGS.md"
	featuresPage = "../deploy/FEATURES.md"
)

func page(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDocumentedNames holds the tables of annotations and of settings against the
// code, both ways: what one knows and the other does not is an error.
func TestDocumentedNames(t *testing.T) {
	var vars []string
	for _, s := range settings.All() {
		vars = append(vars, s.Key)
	}
	for _, tt := range []struct {
		page, heading string
		code          []string
	}{
		{readmePage, "Annotations", podspec.Keys()},
		{settingsPage, "Configuration", vars},
	} {
		documented := firstColumn(page(t, tt.page), tt.heading)
		for _, name := range tt.code {
			if !slices.Contains(documented, name) {
				t.Errorf("%s, %s: no row for %s, which the code reads", tt.page, tt.heading, name)
			}
		}
		for _, name := range documented {
			if !slices.Contains(tt.code, name) {
				t.Errorf("%s, %s: %s, which the code does not read", tt.page, tt.heading, name)
			}
		}
	}
}

// TestDocumentedDefaults: the row of a setting gives the default that the code has.
func TestDocumentedDefaults(t *testing.T) {
	text := page(t, settingsPage)
	for _, s := range settings.All() {
		row := rowOf(section(text, "Configuration"), s.Key)
		if s.Default != "" && !strings.Contains(row, "`"+s.Default+"`") {
			t.Errorf("%s: the row of %s does not give its default `%s`", settingsPage, s.Key, s.Default)
		}
	}
}

// TestDocumentedFeatures: each annotation that asks for something beyond an address has a
// row in the table of the features' page, and the section that the row leads to says how
// to write it.
func TestDocumentedFeatures(t *testing.T) {
	text := page(t, featuresPage)
	table := section(text, "Features")
	sections := map[string]string{} // by anchor
	for line := range strings.Lines(text) {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			heading = strings.TrimSpace(heading)
			sections[anchorOf(heading)] = section(text, heading)
		}
	}
	link := regexp.MustCompile(`\(#([^)]+)\)`)
	for _, key := range podspec.Keys() {
		if key == podspec.AnnotationEnabled || key == podspec.AnnotationTags { // of the README and the policy
			continue
		}
		row := rowOf(table, strings.TrimPrefix(key, podspec.AnnotationPrefix))
		to := link.FindStringSubmatch(row)
		if to == nil {
			t.Errorf("%s: no row for %s with a link to its section", featuresPage, key)
			continue
		}
		if written := regexp.MustCompile(regexp.QuoteMeta(key) + `\b[^-]`); !written.MatchString(sections[to[1]]) {
			t.Errorf("%s: the section %q, to which the row of %s leads, does not have it", featuresPage, to[1], key)
		}
	}
}

// anchorOf is the fragment of a heading's address.
func anchorOf(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-':
			b.WriteRune(r)
		case r == ' ':
			b.WriteByte('-')
		}
	}
	return b.String()
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
