// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"go/ast"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// notReasons are the functions and methods that take a text which is not a reason, by name.
// Lines of the log have a section of their own.
var notReasons = map[string]string{
	"Debug": "log", "Info": "log", "Warn": "log", "Error": "log", "DebugContext": "log", "InfoContext": "log", "WarnContext": "log", "ErrorContext": "log",
	"Log": "log", "level": "log", "warnOnce": "log",
	"Fprintf": "output of a command", "Fprintln": "output of a command", "Fprint": "output of a command",
	"Contains": "comparison", "HasPrefix": "comparison", "CutPrefix": "comparison", "MustCompile": "comparison", "Sscanf": "comparison",
	"fine":  "a finding of the doctor with which nothing is wrong",
	"panic": "a fault of the program, in the log with its trace",
}

// said is a text of the program that may become a reason.
type said struct{ text, at string }

var words = regexp.MustCompile(`[a-zA-Z]{2}[a-z]*[,:]? [a-zA-Z(]`)

// notOf are functions and variables whose texts users do not look up, by the file and
// the name. They are functions that answer a bad command line with what to write
// instead, and functions that print an answer's headings and values.
var notOf = map[string]string{
	"../nri-plugin/args.go checkFlags":                            "bad arguments",
	"../nri-plugin/args.go parseArgs":                             "bad arguments",
	"../nri-plugin/internal/podtools/podtools.go Run":             "bad arguments",
	"../nri-plugin/internal/podtools/podtools.go newPodClient":    "bad arguments",
	"../nri-plugin/internal/podtools/podtools.go formatFlag":      "bad arguments",
	"../nri-plugin/internal/podtools/ping.go check":               "bad arguments",
	"../nri-plugin/internal/status/report.go PodName":             "bad arguments",
	"../nri-plugin/kubectl-tailscale_nri/args.go parseArgs":       "bad arguments",
	"../nri-plugin/kubectl-tailscale_nri/args.go cutClusterFlag":  "bad arguments",
	"../nri-plugin/kubectl-tailscale_nri/args.go check":           "bad arguments",
	"../nri-plugin/kubectl-tailscale_nri/args.go parseTool":       "bad arguments",
	"../nri-plugin/kubectl-tailscale_nri/gather.go locate":        "bad arguments",
	"../nri-plugin/internal/status/print.go columns":              "headings of a table",
	"../nri-plugin/kubectl-tailscale_nri/doctor.go printFindings": "headings of a table",
	"../nri-plugin/internal/podtools/bugreport.go bugreportFlags": "headings of the report",
	"../nri-plugin/internal/podtools/netcheck.go printNetcheck":   "what was measured",
	"../nri-plugin/internal/podtools/capture.go summary":          "how much was captured",
	"../nri-plugin/kubectl-tailscale_nri/kubectl.go explain":      "what kubectl begins its lines with",
}

// declared returns a name of the sources in the form of notOf.
func declared(set *token.FileSet, name *ast.Ident) string {
	return set.Position(name.Pos()).Filename + " " + name.Name
}

// reasons are the texts of two words or more in the program's sources that are not in
// a call of one of notReasons, nor in one of notOf, nor the end of another by what they
// begin with, nor a command's page of help, which is a constant usage….
func reasons(t *testing.T) (all []said) {
	t.Helper()
	eachSource(t, func(path string, set *token.FileSet, file *ast.File) {
		for of := range notOnThePage {
			if path == of || strings.HasPrefix(path, of+"/") {
				return
			}
		}
		all = append(all, textsIn(set, file)...)
	})
	return all
}

// textsIn are the texts of a part of a file that may be reasons.
func textsIn(set *token.FileSet, of ast.Node) (all []said) {
	ast.Inspect(of, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			_, is := notReasons[called(n)]
			return !is
		case *ast.Field:
			return n.Tag == nil
		case *ast.FuncDecl:
			return notOf[declared(set, n.Name)] == ""
		case *ast.ValueSpec:
			return notOf[declared(set, n.Names[0])] == "" && !strings.HasPrefix(n.Names[0].Name, "usage")
		case ast.Expr:
			text := strings.Join(strings.Fields(textOf(n)), " ")
			if words.MatchString(text) && fixed(text) >= 5 && !strings.ContainsAny(text[:1], ",;:") && !strings.Contains(textOf(n), "\n\n") {
				all = append(all, said{text, set.Position(n.Pos()).String()})
			}
			if text == "" {
				return true
			}
			for _, operand := range operands(n) {
				all = append(all, textsIn(set, operand)...)
			}
			return false
		}
		return true
	})
	return all
}

// textsBelow reports whether the function or variable of that name, as notOf has it, has
// a text that may be a reason.
func textsBelow(t *testing.T, name string) (has bool) {
	t.Helper()
	eachSource(t, func(_ string, set *token.FileSet, file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				has = has || declared(set, n.Name) == name && len(textsIn(set, n.Body)) > 0
			case *ast.ValueSpec:
				for _, value := range n.Values {
					has = has || declared(set, n.Names[0]) == name && len(textsIn(set, value)) > 0
				}
			}
			return true
		})
	})
	return has
}

// operands are the parts of a sum of texts, without the texts themselves.
func operands(e ast.Expr) []ast.Expr {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return operands(e.X)
	case *ast.BinaryExpr:
		return slices.Concat(operands(e.X), operands(e.Y))
	case *ast.BasicLit:
		return nil
	}
	if _, is := nameField(e); is {
		return nil
	}
	return []ast.Expr{e}
}

// called is the last part of the name of what is called.
func called(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	}
	return ""
}

// notOnThePage are files whose texts are never shown as a reason.
var notOnThePage = map[string]string{
	"../engine/exporter/families.go":              "what each metric is, which the metrics' own list has",
	"../nri-plugin/internal/settings/settings.go": "what each setting is, which -help prints",
	"../engine/steps.go":                          "names of steps that tests interrupt",
	"../engine/internal/nstest":                   "for tests",
	"../nri-plugin/internal/statustest":           "for tests",
	"../nri-plugin/internal/plugintest":           "for tests",
	"../nri-plugin/internal/kubeapi/apitest":      "for tests",
	"../engine/internal/podnet/vnet.go":           "why one frame of a pod is dropped, which is counted and never shown",
}

// neverReasons are single texts that are never shown, or need no action.
var neverReasons = map[string]string{
	"[v1] successful lite map update in …":               "a line of tailscale.com's that is looked for",
	"magicsock: derp-… connected; connGen=…":             "a line of tailscale.com's that is looked for",
	"closing connection to derp-… (…), age …":            "a line of tailscale.com's that is looked for",
	"Received error: …":                                  "a line of tailscale.com's that is looked for",
	"lite map update error after …: …":                   "a line of tailscale.com's that is looked for",
	"API key not valid":                                  "what another program's text is cut to",
	"tailscale-nri mark of a federated identity v1":      "what a key is derived from",
	"tailscale-nri … for the next pod":                   "the description of a key",
	"tailscale-nri trial":                                "the description of a key",
	"tailnet with … at …":                                "of a line of the log",
	"tailnet with a static auth key":                     "of a line of the log",
	"end of round …":                                     "a mark among stored sockets",
	"# Kept by tailscale-nri.":                           "the first line of a resolv.conf",
	"engine.Config.Tailnet is not set":                   "a fault of a caller",
	"this version of tailscale-nri makes no resolv.conf": "of an engine without DNS, which tests alone have",
	"no identity is stored":                              "each caller makes one then",
	"not all pods are Running":                           "never printed: the status says it",
	"printing the status: …":                             "a fault of the program",
	"name taken":                                         "what kind of news it is, within the program",
	"no frame":                                           "never shown: the capture goes on",
	"-c, -d and -s are 0 or more":                        "a bad argument",
	"-proto is …: write tcp or udp":                      "a bad argument",
	"something fails":                                    "never printed: the doctor's table says it",
	"an OAuth client":                                    "a part of other texts",
	"the OAuth client":                                   "a part of other texts",
	"a federated identity":                               "a part of other texts",
	"the federated identity":                             "a part of other texts",
	"an auth key":                                        "a part of other texts",
	"the plugin":                                         "a part of other texts",
	"of unknown version":                                 "a part of other texts",
	"until it ends":                                      "a part of other texts",
	"it has no ID":                                       "a fault of a caller",
	"its ID or its new name is empty":                    "a fault of a caller",
	"as that of …":                                       "a finding of the doctor with which nothing is wrong",

	"the annotation …": "a part of other texts",
	"the keys ….TS_…":  "a part of other texts",
	"…=true with the rights for it (deploy/components/workload-state)": "a part of other texts",
	"the default tags":                                              "what a setting without a name is called, and all have one",
	"tailnet.OAuthConfig.ClientID is not set":                       "a fault of a caller",
	"tailnet.OAuthConfig needs one of ClientSecret and IDTokenFile": "a fault of a caller",
	"tailnet.StaticConfig.AuthKey is not set":                       "a fault of a caller",
}

// TestGuideHasEveryReason: a text that a user may be shown is in the guide, in a block
// marked "text" or as code in a line, word for word but for what varies.
func TestGuideHasEveryReason(t *testing.T) {
	text := read(t, guide)
	quotes := blocks(text, "text")
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
		quotes = append(quotes, m[1])
	}
	for path, why := range notOnThePage {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("take it out of notOnThePage (%s): %v", why, err)
		}
	}
	for name, why := range notOf {
		if !textsBelow(t, name) {
			t.Errorf("take %s out of notOf (%s): it has no text that would count", name, why)
		}
	}
	all, used := reasons(t), map[string]bool{}
	if len(all) < 500 {
		t.Fatalf("%d texts were found, which are not all", len(all))
	}
	for _, s := range all {
		if _, is := neverReasons[s.text]; is {
			used[s.text] = true
			continue
		}
		if !slices.ContainsFunc(quotes, func(q string) bool { return covers(q, s.text) }) {
			t.Errorf("%s: nothing in %s has this text: %s", s.at, guide, s.text)
		}
	}
	for text, why := range neverReasons {
		if !used[text] {
			t.Errorf("no source has %q any more: take it out of neverReasons (%s)", text, why)
		}
	}
}

// covers reports whether a quote has most of a text: its fixed parts, in their order.
func covers(quote, text string) bool {
	return fixed(quote) >= min(fixed(text)*2/3, 60) && isPartOf(quote, text)
}

// TestGuideIndex: each section that quotes the program is in the table "By text", with
// the beginning of one of its lines at least, and each row is of the section it links to.
func TestGuideIndex(t *testing.T) {
	quotes := map[string][]string{} // by the section's anchor
	for _, section := range sections(read(t, guide)) {
		quotes[section.anchor] = append(quotes[section.anchor], slices.Concat(blocks(section.text, "text"), blocks(section.text, "other"))...)
	}
	_, index, _ := strings.Cut(read(t, guide), "\n## By text\n")
	index, _, _ = strings.Cut(index, "\n## ")
	has := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| \\[[^]]+\\]\\(#([^)]+)\\) \\|$").FindAllStringSubmatch(index, -1) {
		text, anchor := row[1], row[2]
		has[anchor] = true
		if !slices.ContainsFunc(quotes[anchor], func(q string) bool { return strings.HasPrefix(q, text) }) {
			t.Errorf("the table has %q for #%s, which has no line that begins so", text, anchor)
		}
	}
	for anchor, lines := range quotes {
		if len(lines) > 0 && !has[anchor] {
			t.Errorf("the table \"By text\" has no row for #%s, such as | `%s` | [%s](#%s) |", anchor, lines[0], anchor, anchor)
		}
	}
}

// section is a part of the guide from one heading to the next.
type section struct{ anchor, text string }

func sections(text string) (all []section) {
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if heading, is := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); is && !fenced && line[0] == '#' {
			all = append(all, section{anchor: anchorOf(heading)})
		}
		if len(all) > 0 {
			all[len(all)-1].text += line
		}
	}
	return all
}

// anchorOf is the anchor that GitHub gives a heading.
func anchorOf(heading string) string {
	plain := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
	return strings.ReplaceAll(plain, " ", "-")
}
