// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"slices"
	"strings"
)

// matchGlob reports whether s matches the pattern, in which * stands for any number
// of characters, none included. Nothing else is special. It takes time in
// proportion to the product of the two lengths, whatever the pattern.
func matchGlob(pattern, s string) bool {
	head, rest, found := strings.Cut(pattern, "*")
	if !found {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		// The first place leaves the most for what follows.
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], after
	}
}

// matchAny reports whether s matches one of the patterns.
func matchAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matchGlob(p, s) })
}
