// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"strings"

	"tailscale-nri/nri-plugin/internal/settings"
)

// misspelt returns the key of ours that key was probably meant to be. Only
// keys under our prefix are looked at, in any case.
func misspelt(key string, ours []string) (string, bool) {
	lower := strings.ToLower(key)
	name, ok := strings.CutPrefix(lower, annotationPrefix)
	if !ok {
		return "", false
	}
	for _, our := range ours {
		want := strings.TrimPrefix(our, annotationPrefix)
		// Two slips of the finger in a word of seven letters still show what was
		// meant; in one of four they make another word.
		most := 2
		if len(want) < 6 {
			most = 1
		}
		if editDistance(name, want) <= most {
			return our, true
		}
	}
	return "", false
}

// closestSetting returns the variable of the directory that key was probably
// meant to be: the one that takes the fewest slips, if they are few for its length
// or key is a part of its name, as in Secrets that were made for another program.
func closestSetting(key string) (like string, ok bool) {
	const shortest = 4 // letters that mean something
	key = strings.NewReplacer("-", "_", ".", "_").Replace(strings.ToUpper(key))
	least := 0
	for _, s := range settings.All() {
		if settings.IsEnvOnly(s.Key) {
			continue // it would be refused there
		}
		d := editDistance(key, s.Key)
		near := d*4 <= len(s.Key) || len(key) >= shortest && strings.Contains(s.Key, key)
		if near && (!ok || d < least) {
			like, least, ok = s.Key, d, true
		}
	}
	return like, ok
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment distance).
func editDistance(a, b string) int {
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
