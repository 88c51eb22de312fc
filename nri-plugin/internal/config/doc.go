// SPDX-License-Identifier: BSD-3-Clause

// Package config reads what the process is configured with: the environment, the
// directory of files that TS_CONFIG_DIR names, and the policy. It checks all of it, and
// its errors have a line for each bad value, with key, value and remedy.
//
// It also has the parts that follow from the configuration alone: the proxies of this
// process, and the ranges that stay on the pods' eth0.
//
// It does not look for changes, opens no connection, and asks no API whether a
// credential is good: it checks only what can be seen on this host.
package config
