// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const guide = "TROUBLESHOOTING.md"

// varies stands in the guide for a part that differs from message to message.
const varies = "…"

// verb is one of package fmt. It takes "%%" for itself, and so leaves it alone.
var verb = regexp.MustCompile(`%[-+#0-9.]*[a-zA-Z%]`)

// TestGuideQuotes holds each line of the guide that quotes this program (a
// block marked "text") against the string literals of its sources, so that the
// text that a user searches for is the text that was shown.
func TestGuideQuotes(t *testing.T) {
	var messages []message
	for _, text := range programTexts(t) {
		messages = append(messages, newMessage(text))
	}
	quotes := blocks(read(t, guide), "text")
	if len(quotes) < 500 {
		t.Fatalf("%s has %d quotes, which are not all", guide, len(quotes))
	}
	for _, quote := range quotes {
		if !slices.ContainsFunc(messages, func(m message) bool { return m.has(quote) }) {
			t.Errorf("%s quotes %q, which no source of the program says", guide, quote)
		}
	}
}

// TestGuideCovers: these log lines explain themselves least, so the guide explains
// each.
func TestGuideCovers(t *testing.T) {
	text := read(t, guide)
	for _, want := range []string{
		"this looks like a copy of another host's state",
		"the node's device was connected before this host has used its keys",
		"locked out by tailnet lock",
		"are invalid or not permitted",
		"the kernel refused a segmentation-offload frame",
		"does not run this pod: another runtime has taken the kubelet's socket",
		"which is not in …",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s has nothing on %q", guide, want)
		}
	}
}

// TestMessageHas: which texts pass for a quote and which do not.
func TestMessageHas(t *testing.T) {
	m := newMessage("device … waits: … of …")
	for quote, want := range map[string]bool{
		"device … waits: … of …": true,
		"device a waits: 3 of 7": true,
		"device … waits":         true,
		"waits: …":               true,
		"… of … waits":           false,
		"device … waited":        false,
		"…":                      false,
	} {
		if m.has(quote) != want {
			t.Errorf("%q is not %v", quote, want)
		}
	}
	if newMessage("…: …").has("anything at all") {
		t.Error("a message of nothing but verbs is taken for every text")
	}
}

// message is a text of the program, with "…" for what varies.
type message struct {
	text    string
	pattern *regexp.Regexp // of what it becomes, nil if next to nothing of it is fixed
}

func newMessage(text string) message {
	m := message{text: text}
	if fixed(text) >= 5 {
		m.pattern = regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(text), varies, ".+") + "$")
	}
	return m
}

// has reports whether quote is the message, or parts of it in their order.
func (m message) has(quote string) bool {
	return m.pattern != nil && fixed(quote) > 0 && (isPartOf(quote, m.text) || m.pattern.MatchString(quote))
}

// isPartOf reports whether the fixed parts of quote are in text, in their order.
func isPartOf(quote, text string) bool {
	for part := range strings.SplitSeq(quote, varies) {
		_, after, found := strings.Cut(text, part)
		if !found {
			return false
		}
		text = after
	}
	return true
}

// fixed counts the letters that do not vary.
func fixed(text string) (n int) {
	for _, r := range text {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			n++
		}
	}
	return n
}

// TestGuideLinks: the guide is linked from the README, and its own links lead
// somewhere.
func TestGuideLinks(t *testing.T) {
	if !strings.Contains(read(t, "../README.md"), "(deploy/"+guide+")") {
		t.Errorf("README.md does not link to deploy/%s", guide)
	}
	text := read(t, guide)
	var anchors []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		anchors = append(anchors, anchorOf(m[1]))
	}
	for _, m := range regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(anchors, m[1]) {
			t.Errorf("%s links to #%s, and has no such heading", guide, m[1])
		}
	}
	for _, m := range regexp.MustCompile("`(deploy/[a-z0-9./-]+)`").FindAllStringSubmatch(text, -1) {
		if found, err := filepath.Glob(filepath.Join("..", m[1])); err != nil || len(found) == 0 {
			t.Errorf("%s names %s, which is not there (%v)", guide, m[1], err)
		}
	}
}

// TestGuideVariables: what the guide calls a setting is one.
func TestGuideVariables(t *testing.T) {
	known := settings(t)
	for _, m := range regexp.MustCompile("`(TS_[A-Z_]+|NRI_SOCKET|CLUSTER_NAME)`").FindAllStringSubmatch(read(t, guide), -1) {
		if _, ok := known[m[1]]; !ok {
			t.Errorf("%s names %s, which the program does not know", guide, m[1])
		}
	}
}

// blocks are the lines of all fenced blocks with this mark.
func blocks(text, mark string) (lines []string) {
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case inside && line != "```":
			lines = append(lines, line)
		default:
			inside = !inside && line == "```"+mark
		}
	}
	return lines
}

// programTexts are the string literals of the program's sources, with "…" for
// the verbs of package fmt and for what is added to a literal at run time.
func programTexts(t *testing.T) (texts []string) {
	t.Helper()
	eachSource(t, func(_ string, _ *token.FileSet, file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				texts = append(texts, textOf(e))
			}
			return true
		})
	})
	slices.Sort(texts)
	return slices.Compact(texts)
}

// eachSource hands on the program's sources.
func eachSource(t *testing.T, do func(path string, set *token.FileSet, file *ast.File)) {
	t.Helper()
	for _, root := range []string{"../engine", "../nri-plugin"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, 0)
			if err == nil {
				do(path, set, file)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// textOf is the text of a literal, of the name of a setting, or of a sum that has one.
func textOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		return verb.ReplaceAllStringFunc(literal(e), func(v string) string {
			if v == "%%" {
				return "%"
			}
			return varies
		})
	case *ast.ParenExpr:
		return textOf(e.X)
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return ""
		}
		left, right := textOf(e.X), textOf(e.Y)
		if left+right == "" {
			return ""
		}
		if left == "" {
			left = varies
		}
		if right == "" {
			right = varies
		}
		return left + right
	}
	return settingName(e)
}
