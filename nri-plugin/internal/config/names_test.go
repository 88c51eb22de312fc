// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"reflect"
	"testing"
)

// TestNames: no error names a field of a package below in a setting's place.
func TestNames(t *testing.T) {
	for _, names := range []any{TailnetNames, EngineNames} {
		v := reflect.ValueOf(names)
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("%s.%s is not set", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
}
