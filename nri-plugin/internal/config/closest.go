// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"strings"

	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

// closestSetting returns the variable of the directory that key was probably meant to be:
// the one with the fewest differing letters. There must be few of them for its length, or
// key must be a part of its name, as in Secrets that were made for another program.
func closestSetting(key string) (like string, ok bool) {
	const shortest = 4 // letters that mean something
	key = strings.NewReplacer("-", "_", ".", "_").Replace(strings.ToUpper(key))
	least := 0
	for _, s := range settings.All() {
		if settings.IsEnvOnly(s.Key) {
			continue // it would be refused there
		}
		d := podspec.EditDistance(key, s.Key)
		near := d*4 <= len(s.Key) || len(key) >= shortest && strings.Contains(s.Key, key)
		if near && (!ok || d < least) {
			like, least, ok = s.Key, d, true
		}
	}
	return like, ok
}
