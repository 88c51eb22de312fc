// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMatchGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, s string
		want       bool
	}{
		{"shop", "shop", true}, {"shop", "shop-a", false}, {"shop", "a-shop", false},
		{"shop-*", "shop-a", true}, {"shop-*", "shop-", true}, {"shop-*", "shop", false},
		{"*-shop", "a-shop", true}, {"*-shop", "a-shops", false}, {"*", "", true}, {"*", "a", true},
		{"a*b*c", "aXbYc", true}, {"a*b*c", "abc", true}, {"a*b*c", "acb", false}, {"a*a", "a", false},
		{"*ab*ab", "ab", false}, {"*ab*ab", "abab", true}, {"", "", true}, {"", "a", false},
		{"a.c", "abc", false}, {"tag:*", "tag:x", true}, {"**", "x", true},
	} {
		if got := matchGlob(tt.pattern, tt.s); got != tt.want {
			t.Errorf("%q of %q: %v", tt.s, tt.pattern, got)
		}
	}
}

// FuzzGlob compares with the regular expression of the same meaning.
func FuzzGlob(f *testing.F) {
	f.Add("a*b*c", "aXbYc")
	f.Add("*", "")
	f.Add("tag:*-x", "tag:shop-x")
	f.Add(strings.Repeat("a*", 20)+"b", strings.Repeat("a", 40))
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 60 || len(s) > 200 {
			return
		}
		var parts []string
		for part := range strings.SplitSeq(pattern, "*") {
			parts = append(parts, regexp.QuoteMeta(part))
		}
		re, err := regexp.Compile(`(?s)\A(?:` + strings.Join(parts, ".*") + `)\z`)
		if err != nil || strings.ToValidUTF8(s, "") != s || strings.ToValidUTF8(pattern, "") != pattern {
			return // the regular expression has no say
		}
		start := time.Now()
		if got, want := matchGlob(pattern, s), re.MatchString(s); got != want {
			t.Errorf("%q of %q: %v, want %v", s, pattern, got, want)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
