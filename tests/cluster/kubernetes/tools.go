//go:build tools

package controlplane

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
