// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"go/ast"
	"strings"
	"testing"
)

// lockedByOthers are the functions that lock a mu of another struct than their own, and
// why that is right.
var lockedByOthers = map[string]string{
	"controlConn.Close":    "it leaves the connections that it is one of",
	"node.ensureDNS":       "it is held across the preparation of the pod, which is the node's to do: see doc.go",
	"node.writeResolvConf": "the same, of the file",
}

// TestLocksAreTheirStructs has a mutex called mu be locked by methods of its own struct
// alone: to change one of the node's structs takes no look at who else locks it. What
// other locks there are doc.go lists.
func TestLocksAreTheirStructs(t *testing.T) {
	found := 0
	eachFunction(t, ".", func(name string, f *ast.FuncDecl) {
		typ, _, _ := strings.Cut(name, ".")
		ast.Inspect(f, func(n ast.Node) bool {
			of, ok := lockedMu(n)
			if !ok {
				return true
			}
			found++
			// A node has that of published, which it embeds.
			own, ok := of.(*ast.Ident)
			if ok && own.Name == receiverOf(f) && typ != "node" || lockedByOthers[name] != "" {
				return true
			}
			t.Errorf("%s locks the mutex of another struct: have it call a method of that", name)
			return true
		})
	})
	if found < 50 {
		t.Errorf("%d mutexes are locked: what this test reads has moved", found)
	}
}

// receiverOf returns the name of a method's receiver, "" if there is none.
func receiverOf(f *ast.FuncDecl) string {
	if f.Recv == nil || len(f.Recv.List[0].Names) == 0 {
		return ""
	}
	return f.Recv.List[0].Names[0].Name
}

// lockedMu returns x of x.mu.Lock().
func lockedMu(n ast.Node) (x ast.Expr, ok bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return nil, false
	}
	lock, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || lock.Sel.Name != "Lock" && lock.Sel.Name != "RLock" {
		return nil, false
	}
	mu, ok := lock.X.(*ast.SelectorExpr)
	if !ok || mu.Sel.Name != "mu" {
		return nil, false
	}
	return mu.X, true
}
