// SPDX-License-Identifier: BSD-3-Clause

package engine

// closers is the one undo stack of a constructor: it pushes as it opens, and
// failure and normal close both run the stack, last in, first out.
type closers []func()

func (c *closers) push(f func()) { *c = append(*c, f) }

func (c *closers) close() {
	for i := len(*c) - 1; i >= 0; i-- {
		(*c)[i]()
	}
	*c = nil
}
