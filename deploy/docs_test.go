// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// pages are the documents of the project, relative to this directory.
func pages(t *testing.T) []string {
	t.Helper()
	list := []string{"../README.md", "../WHY.md", "../.github/CONTRIBUTING.md", "../k3d/lab/README.md"}
	for _, pattern := range []string{"*.md", "*/*.md", "*/*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, found...)
	}
	if len(list) < 6 {
		t.Fatalf("only these pages were found: %v", list)
	}
	return list
}

// TestLinks: a link of a page to another one, or to a heading, leads somewhere.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, from := range pages(t) {
		found := link.FindAllStringSubmatch(read(t, from), -1)
		for _, m := range found {
			path, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(path, "://") {
				continue
			}
			to := from
			if path != "" {
				to = filepath.Join(filepath.Dir(from), path)
			}
			switch _, err := os.Stat(to); {
			case err != nil:
				t.Errorf("%s links to %s: %v", from, m[1], err)
			case anchor != "" && !slices.Contains(anchors(read(t, to)), anchor):
				t.Errorf("%s links to %s, which has no such heading", from, m[1])
			}
		}
	}
}

// anchors returns the anchors of a page's headings: lower case, without punctuation,
// dashes for spaces.
func anchors(page string) (list []string) {
	for line := range strings.Lines(page) {
		title := strings.TrimLeft(line, "#")
		if title == line || !strings.HasPrefix(title, " ") {
			continue
		}
		list = append(list, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(title)))
	}
	return list
}

// TestReadmeLength: the project's first page can be read in a few minutes.
func TestReadmeLength(t *testing.T) {
	const most = 1400 // words, those of its tables included
	if n := len(strings.Fields(read(t, "../README.md"))); n > most {
		t.Errorf("README.md has %d words, at most %d: move what only some need to a page of deploy/", n, most)
	}
}
