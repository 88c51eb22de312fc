// SPDX-License-Identifier: BSD-3-Clause

package podspec

import "strings"

// misspelt returns the known key that key was probably meant to be. Only
// keys under the prefix are looked at, in any case.
func misspelt(key string, ours []string) (string, bool) {
	lower := strings.ToLower(key)
	name, ok := strings.CutPrefix(lower, AnnotationPrefix)
	if !ok {
		return "", false
	}
	for _, our := range ours {
		want := strings.TrimPrefix(our, AnnotationPrefix)
		// Two slips of the finger in a word of seven letters still show what was
		// meant; in one of four they make another word.
		most := 2
		if len(want) < 6 {
			most = 1
		}
		if EditDistance(name, want) <= most {
			return our, true
		}
	}
	return "", false
}

// EditDistance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment distance).
func EditDistance(a, b string) int {
	// The table's last three rows: [i-2], [i-1] and the one being filled.
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, above, row = above, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := above[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(above[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
