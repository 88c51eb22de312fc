// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"strings"
	"testing"
)

// ExpectError checks an error by the texts in want, which | separates; "" is none.
func ExpectError(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && err == nil:
		t.Errorf("%s: no error, want %q", what, want)
	case want != "":
		for part := range strings.SplitSeq(want, "|") {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", what, err, part)
			}
		}
		if len(err.Error()) > 500 {
			t.Errorf("%s: the error has %d bytes", what, len(err.Error()))
		}
	}
}
