// SPDX-License-Identifier: BSD-3-Clause

// Package errtext shortens what an error's text quotes, and errors to one line.
//
// It words no error: what was wrong and what to write instead is said where the
// error is made.
package errtext

import "strings"

// Clip keeps a value of up to 256 KiB, which Kubernetes allows, out of an
// error text.
func Clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// OneLine is an error's text for those that show no more than a line.
func OneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
