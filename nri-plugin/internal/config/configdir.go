// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/settings"
)

// Values are the variables that are set, trimmed, by name: white space is cut,
// since a Secret made from a file often ends in a newline.
type Values map[string]string

// Get is values in the shape of the environment.
func (v Values) Get(key string) string { return v[key] }

// gather reads the variables from the environment and, for those that are not
// set there, from the directory that TS_CONFIG_DIR names. It returns what
// it can use even with an error, which has one line for each bad file.
func gather(getenv func(string) string) (Values, error) {
	var (
		files Values
		err   error
	)
	if dir := set(getenv, settings.ConfigDir); dir != "" {
		files, err = readConfigDir(dir)
	}
	v := make(Values)
	for _, s := range settings.All() {
		if is := cmp.Or(set(getenv, s.Key), lowerCase(getenv, s.Key), files[s.Key]); is != "" {
			v[s.Key] = is
		}
	}
	for key, is := range files {
		if is != "" && isProfileVar(key) {
			v[key] = is
		}
	}
	return v, err
}

// set is a variable of the environment, trimmed.
func set(getenv func(string) string, key string) string { return strings.TrimSpace(getenv(key)) }

// errNoConfigDir hides the errors that follow from it.
var errNoConfigDir = errors.New("mount the ConfigMap or the Secret there, or unset " + settings.ConfigDir)

// readConfigDir reads a directory with a file for each variable, as the kubelet
// mounts a ConfigMap or a Secret. The kubelet changes all its files at once, by
// a link to another directory: what is read on both sides of such a change is
// read again.
func readConfigDir(dir string) (Values, error) {
	const data = "..data"
	for tries := 0; ; tries++ {
		before, _ := os.Readlink(filepath.Join(dir, data))
		v, err := readFiles(dir, filepath.Join(dir, before))
		after, _ := os.Readlink(filepath.Join(dir, data))
		if after == before || tries == 10 {
			return v, err
		}
	}
}

// readFiles reads the files of what is known as dir and lies at root.
func readFiles(dir, root string) (Values, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w: %w", settings.ConfigDir, err, errNoConfigDir)
	}
	v := make(Values)
	var errs []error
	for _, e := range entries {
		key := e.Name()
		switch {
		case strings.HasPrefix(key, "."), key == PolicyKey:
			// The kubelet's own, and no variable: see checkPolicyKey.
		case settings.IsEnvOnly(key) || !isSetting(key) && !isProfileVar(key):
			errs = append(errs, wrongKey(key, dir))
		default:
			text, err := os.ReadFile(filepath.Join(root, key))
			if err != nil {
				errs = append(errs, fmt.Errorf("reading %s: %w: make it a readable file", key, err))
			}
			v[key] = strings.TrimSpace(string(text))
		}
	}
	return v, errors.Join(errs...)
}

// PolicyKey is the policy's key in the directory of variables.
const PolicyKey = "policy.yaml"

// checkPolicyKey returns an error if there is a policy in the directory of variables that
// is not used: pods could then have what it forbids.
func checkPolicyKey(c Config) error {
	if c.Dir == "" {
		return nil
	}
	lies := filepath.Join(c.Dir, PolicyKey)
	if _, err := os.Stat(lies); err != nil || c.PolicyFile == lies {
		return nil
	}
	return fmt.Errorf("%s is there and %s is %q: set it to %s, or remove the key %s", lies, settings.PolicyFile, c.PolicyFile, lies, PolicyKey)
}

func isSetting(key string) bool {
	return slices.ContainsFunc(settings.All(), func(s settings.Setting) bool { return s.Key == key })
}

func wrongKey(key, dir string) error {
	if settings.IsEnvOnly(key) {
		return fmt.Errorf("key %q in %s: it can only be set in the environment, remove it there", key, dir)
	}
	remedy := "tailscale-nri -help lists them all"
	if profile, variable, ok := profileKey(key); ok {
		remedy = wrongProfileKey(profile, variable)
	} else if like, ok := closestSetting(key); ok {
		remedy = "did you mean " + like + "?"
	}
	return fmt.Errorf("unknown key %q in %s: %s", errtext.Clip(key), dir, remedy)
}

// Changed names the variables that differ.
func Changed(before, after Values) []string {
	var keys []string
	for key := range before {
		if after[key] != before[key] {
			keys = append(keys, key)
		}
	}
	for key := range after {
		if _, ok := before[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
