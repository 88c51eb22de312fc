// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"tailscale-nri/nri-plugin/internal/errtext"
)

// maxLabel is the longest DNS label in bytes (RFC 1035, section 2.3.4).
const maxLabel = 63

// hashLen is the length in hexadecimal digits of the hash that keeps a
// hostname unique. 40 bits: two hostnames whose other text is the same collide
// with a probability of 1 to 10^12.
const hashLen = 10

// nameTemplate names pods: text in which {cluster}, {namespace} and {pod} stand
// for theirs. The zero value is standardName.
type nameTemplate struct {
	text string
	// tells is set if a name tells the namespace from the pod, as long as the
	// namespace has no dash: each stands there once, with a dash between them.
	tells bool
}

// standardName is the default template.
const standardName = "{cluster}-{namespace}-{pod}"

// name names a pod in the tailnet.
//
// The result is a DNS label, and two pods of one cluster never share it as long as the
// template is the same. A hash of the whole is appended in four cases: the text had to be
// changed or cut; a dash in the namespace makes it ambiguous (pod b-c in a, pod c in
// a-b); the template does not tell two pods apart; or the text could be taken for one
// with a hash. Names of different clusters differ as far as the clusters' names do.
func (t nameTemplate) name(cluster, namespace, pod string) string {
	if t.text == "" {
		t = nameTemplate{standardName, true}
	}
	raw := strings.NewReplacer("{cluster}", cluster, "{namespace}", namespace, "{pod}", pod).Replace(t.text)
	label := toLabel(raw)
	plain := t.tells && label == raw && len(label) <= maxLabel &&
		!strings.Contains(namespace, "-") && !endsInHash(label)
	if plain {
		return label
	}
	// %q keeps the three parts apart whatever they contain.
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", cluster, namespace, pod))
	hash := hex.EncodeToString(sum[:])[:hashLen]
	head := label[:min(len(label), maxLabel-1-hashLen)]
	return strings.TrimLeft(strings.TrimRight(head, "-")+"-"+hash, "-")
}

// DefaultHostname is {cluster}-{namespace}-{pod}.
func DefaultHostname(cluster, namespace, pod string) string {
	return nameTemplate{}.name(cluster, namespace, pod)
}

// parseTemplate reads a template.
func parseTemplate(s string) (nameTemplate, error) {
	literal := strings.NewReplacer("{cluster}", "", "{namespace}", "", "{pod}", "").Replace(s)
	for i := range len(literal) {
		if !isLabelByte(literal[i]) {
			return nameTemplate{}, fmt.Errorf("%q is not allowed there: use {cluster}, {namespace}, {pod}, small letters, digits and dashes", errtext.Clip(literal[i:]))
		}
	}
	if !strings.Contains(s, "{pod}") {
		return nameTemplate{}, fmt.Errorf("it has no {pod}: write it such as %s", standardName)
	}
	first, second := strings.Index(s, "{namespace}"), strings.Index(s, "{pod}")
	between := ""
	switch {
	case first < 0 || strings.Count(s, "{namespace}") > 1 || strings.Count(s, "{pod}") > 1:
	case first < second:
		between = s[first+len("{namespace}") : second]
	default:
		between = s[second+len("{pod}") : first]
	}
	return nameTemplate{s, strings.Contains(between, "-")}, nil
}

// toLabel makes each byte of s fit for a DNS label; it does not cut it.
func toLabel(s string) string {
	b := []byte(strings.ToLower(s))
	for i, c := range b {
		if !isLabelByte(c) {
			b[i] = '-'
		}
	}
	return strings.Trim(string(b), "-")
}

// givenHostname checks the hostname that a pod asks for. Upper case becomes
// lower case, since DNS knows no difference; nothing else is changed, so that
// a pod gets the name it asks for or a clear refusal.
func givenHostname(s string) (string, error) {
	label := strings.ToLower(s)
	if err := CheckLabel(label); err != nil {
		return "", err
	}
	return label, nil
}

// CheckLabel reports why s is not a lower-case DNS label.
func CheckLabel(s string) error {
	if s == "" {
		return fmt.Errorf("it is empty")
	}
	if len(s) > maxLabel {
		return fmt.Errorf("it has %d characters, a DNS label at most %d", len(s), maxLabel)
	}
	for i := range len(s) {
		if !isLabelByte(s[i]) {
			return fmt.Errorf("character %d is not allowed in a DNS label: use small letters, digits and dashes", i+1)
		}
	}
	if s[0] == '-' || s[len(s)-1] == '-' {
		return fmt.Errorf("a DNS label neither begins nor ends with a dash")
	}
	return nil
}

func isLabelByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
}

// endsInHash reports whether s ends as a hostname with a hash does.
func endsInHash(s string) bool {
	i := strings.LastIndexByte(s, '-')
	tail := s[i+1:]
	return len(tail) == hashLen && strings.Trim(tail, "0123456789abcdef") == ""
}
