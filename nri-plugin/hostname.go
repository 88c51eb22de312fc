// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// maxLabel is the longest DNS label in bytes (RFC 1035, section 2.3.4).
const maxLabel = 63

// hashLen is the length in hexadecimal digits of the hash that keeps a
// hostname unique. 40 bits: two hostnames whose other text is the same collide
// with a probability of 1 to 10^12.
const hashLen = 10

// defaultHostname names a pod in the tailnet: {cluster}-{namespace}-{pod}.
//
// The result is a DNS label, and two pods of one cluster never share it. Where
// the plain text would not do, a hash of the whole follows it: because it had
// to be changed or cut, because a dash in the namespace makes it ambiguous
// (pod b-c in a, pod c in a-b), or because it could be taken for a text with
// a hash. Names of different clusters differ as far as the clusters' names do.
func defaultHostname(cluster, namespace, pod string) string {
	raw := cluster + "-" + namespace + "-" + pod
	label := toLabel(raw)
	plain := label == raw && len(label) <= maxLabel &&
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
	if err := checkLabel(label); err != nil {
		return "", err
	}
	return label, nil
}

// checkLabel reports why s is not a lower-case DNS label.
func checkLabel(s string) error {
	if s == "" {
		return fmt.Errorf("it is empty")
	}
	if len(s) > maxLabel {
		return fmt.Errorf("it has %d characters, a DNS label at most %d", len(s), maxLabel)
	}
	for i := range len(s) {
		if !isLabelByte(s[i]) {
			return fmt.Errorf("character %d cannot stand in a DNS label: use small letters, digits and dashes", i+1)
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
