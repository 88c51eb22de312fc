// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"strconv"
)

// Names are what reasons and the log call the settings that they speak of: as the users
// of the program know them, which fills this in. Where one is empty, they name the
// field of this package instead, such as Config.StateDir.
type Names struct {
	StateDir   string
	Identities string // what has identities kept
	PodProfile string // by which a pod asks for a profile, with an article where it takes one

	// Profile returns the name of the settings of a profile.
	Profile func(profile string) string
}

// setDefaults puts the fields' names where there are no others.
func (n *Names) setDefaults() {
	n.StateDir = cmp.Or(n.StateDir, "Config.StateDir")
	n.Identities = cmp.Or(n.Identities, "Config.Identities")
	n.PodProfile = cmp.Or(n.PodProfile, "Features.Profile")
	if n.Profile == nil {
		n.Profile = func(profile string) string { return "Config.Profiles[" + strconv.Quote(profile) + "]" }
	}
}
