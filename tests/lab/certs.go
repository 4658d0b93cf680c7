// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// makeCertificates creates an authority and a server certificate for host and localhost.
// It returns the server's chain, the SHA-1 thumbprint of its leaf and the authority's file.
func makeCertificates(dir, host string) (tls.Certificate, string, string, error) {
	var none tls.Certificate
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Lab CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		// What the server's certificate names its signer by: strict verification (Python 3.13) wants it.
		SubjectKeyId: []byte("holdfast lab authority"),
	}
	caKey, caRaw, err := issue(ca, ca, nil)
	if err != nil {
		return none, "", "", err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(host)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key, raw, err := issue(leaf, ca, caKey)
	if err != nil {
		return none, "", "", err
	}
	file := filepath.Join(dir, "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caRaw})
	if err := os.WriteFile(file, block, 0o644); err != nil {
		return none, "", "", err
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, thumbprint(raw), file, nil
}

// hostCertificate makes what an ESXi host signs itself when it is installed.
func hostCertificate(host string) (tls.Certificate, error) {
	now := time.Now()
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{Organization: []string{"Lab host"}, CommonName: host},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), IPAddresses: []net.IP{net.ParseIP(host)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key, raw, err := issue(leaf, leaf, nil)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, err
}

// issue makes a key and has the parent sign the certificate; without a parent's key it signs itself.
func issue(certificate, parent *x509.Certificate, parentKey crypto.Signer) (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parentKey == nil {
		parentKey = key
	}
	raw, err := x509.CreateCertificate(rand.Reader, certificate, parent, key.Public(), parentKey)
	return key, raw, err
}

// thumbprint is SHA-1 in the colon form that VDDK takes.
func thumbprint(raw []byte) string {
	sum := sha1.Sum(raw)
	return colons(sum[:])
}

// thumbprint256 is SHA-256 in the same form.
func thumbprint256(raw []byte) string {
	sum := sha256.Sum256(raw)
	return colons(sum[:])
}

func colons(sum []byte) string {
	parts := make([]string, len(sum))
	for i, b := range sum {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}
