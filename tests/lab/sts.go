// Copyright (c) 2026 the holdfast.backup authors
// SPDX-License-Identifier: GPL-3.0-or-later

package main

// vCenter Single Sign-On: the security token service, and the check of its tokens at log-in.
//
// Requests and tokens are checked as the real services do: signatures (XML-DSig), times, audience, the user and the
// holder's key. The simulator's own service gives everybody the same expired token, and its log-in takes any.

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/beevik/etree"
	"github.com/google/uuid"
	dsig "github.com/russellhaering/goxmldsig"
)

const (
	stsPath   = "/sts/STSService"
	stsIssue  = "http://docs.oasis-open.org/ws-sx/ws-trust/200512/RST/Issue"
	wsTrust   = "http://docs.oasis-open.org/ws-sx/ws-trust/200512"
	saml2     = "urn:oasis:names:tc:SAML:2.0:assertion"
	samlTime  = "2006-01-02T15:04:05.000Z"
	bearerKey = wsTrust + "/Bearer"
	holderKey = wsTrust + "/PublicKey"
	confirm   = "urn:oasis:names:tc:SAML:2.0:cm:"
)

// sts issues tokens and checks them.
type sts struct {
	s     *sim
	once  sync.Once
	key   *rsa.PrivateKey
	cert  *x509.Certificate
	mu    sync.Mutex
	users map[string]*x509.Certificate // solution users, who have a key and no password
}

// identity makes the service's own key when it is first needed, as it takes a while.
func (t *sts) identity() (*rsa.PrivateKey, *x509.Certificate) {
	t.once.Do(func() {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ssoserverSign"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		}
		raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			panic(err)
		}
		t.key = key
		t.cert, _ = x509.ParseCertificate(raw)
	})
	return t.key, t.cert
}

// addSolutionUser is a control verb.
func (t *sts) addSolutionUser(p struct {
	Name        string `json:"name"`
	Certificate string `json:"certificate"` // PEM
}) (any, error) {
	block, _ := pem.Decode([]byte(p.Certificate))
	if block == nil {
		return nil, fmt.Errorf("no PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users[p.Name] = cert
	return nil, nil
}

// tokenVerb is a control verb: a bearer token as the service would give it, of any user and time.
func (t *sts) tokenVerb(p struct {
	User     string `json:"user"`
	Seconds  int    `json:"seconds"` // from now on; negative: it has expired
	Audience string `json:"audience"`
}) (any, error) {
	return t.token(p.User, time.Now().Add(time.Duration(p.Seconds)*time.Second), p.Audience, nil)
}

// token makes and signs an assertion, of the holder of a certificate's key if there is one.
func (t *sts) token(user string, until time.Time, audience string, holder *x509.Certificate) (string, error) {
	now := time.Now().UTC()
	a := etree.NewElement("saml2:Assertion")
	a.CreateAttr("xmlns:saml2", saml2)
	a.CreateAttr("ID", "_"+uuid.NewString())
	a.CreateAttr("IssueInstant", now.Format(samlTime))
	a.CreateAttr("Version", "2.0")
	a.CreateElement("saml2:Issuer").SetText("https://" + t.s.host + "/websso/SAML2/Metadata/vsphere.local")
	subject := a.CreateElement("saml2:Subject")
	name := subject.CreateElement("saml2:NameID")
	name.CreateAttr("Format", "http://schemas.xmlsoap.org/claims/UPN")
	name.SetText(user)
	confirmation := subject.CreateElement("saml2:SubjectConfirmation")
	if holder == nil {
		confirmation.CreateAttr("Method", confirm+"bearer")
		confirmation.CreateElement("saml2:SubjectConfirmationData").CreateAttr("NotOnOrAfter", until.UTC().Format(samlTime))
	} else {
		confirmation.CreateAttr("Method", confirm+"holder-of-key")
		info := confirmation.CreateElement("saml2:SubjectConfirmationData").CreateElement("ds:KeyInfo")
		info.CreateAttr("xmlns:ds", dsig.Namespace)
		info.CreateElement("ds:X509Data").CreateElement("ds:X509Certificate").SetText(base64.StdEncoding.EncodeToString(holder.Raw))
	}
	conditions := a.CreateElement("saml2:Conditions")
	conditions.CreateAttr("NotBefore", now.Add(-time.Hour).Format(samlTime))
	conditions.CreateAttr("NotOnOrAfter", until.UTC().Format(samlTime))
	if audience != "" {
		conditions.CreateElement("saml2:AudienceRestriction").CreateElement("saml2:Audience").SetText(audience)
	}
	key, cert := t.identity()
	signer, err := dsig.NewSigningContext(key, [][]byte{cert.Raw})
	if err != nil {
		return "", err
	}
	signer.Canonicalizer = dsig.MakeC14N10ExclusiveCanonicalizerWithPrefixList("")
	signed, err := signer.SignEnveloped(a)
	if err != nil {
		return "", err
	}
	doc := etree.NewDocument()
	doc.SetRoot(signed)
	return doc.WriteToString()
}

// ServeHTTP answers the request for a token.
func (t *sts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || strings.Trim(r.Header.Get("SOAPAction"), `"`) != stsIssue {
		http.Error(w, "expected RST/Issue", http.StatusBadRequest)
		return
	}
	token, err := t.issue(body)
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	envelope := `<S:Envelope xmlns:S="http://schemas.xmlsoap.org/soap/envelope/" xmlns:wst="` + wsTrust + `"><S:Body>%s</S:Body></S:Envelope>`
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, envelope, "<S:Fault><faultcode>wst:FailedAuthentication</faultcode><faultstring>"+err.Error()+"</faultstring></S:Fault>")
		return
	}
	fmt.Fprintf(w, envelope, "<wst:RequestSecurityTokenResponseCollection><wst:RequestSecurityTokenResponse><wst:RequestedSecurityToken>"+
		token+"</wst:RequestedSecurityToken></wst:RequestSecurityTokenResponse></wst:RequestSecurityTokenResponseCollection>")
}

func (t *sts) issue(message []byte) (string, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(message); err != nil {
		return "", fmt.Errorf("not XML")
	}
	security, request := doc.FindElement("//Security"), doc.FindElement("//Body/RequestSecurityToken")
	if security == nil || request == nil {
		return "", fmt.Errorf("no security header or no request")
	}
	if err := fresh(security.FindElement("Timestamp"), time.Now()); err != nil {
		return "", err
	}
	until, err := time.Parse(samlTime, text(request.FindElement("Lifetime/Expires")))
	if err != nil {
		return "", fmt.Errorf("no lifetime")
	}
	switch text(request.FindElement("KeyType")) {
	case bearerKey:
		user, password := text(security.FindElement("UsernameToken/Username")), text(security.FindElement("UsernameToken/Password"))
		if user != t.s.user || password != t.s.password {
			return "", fmt.Errorf("Invalid credentials")
		}
		return t.token(user, until, t.s.ready.URL, nil)
	case holderKey:
		raw, err := base64.StdEncoding.DecodeString(text(security.FindElement("BinarySecurityToken")))
		if err != nil {
			return "", fmt.Errorf("no certificate")
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for name, cert := range t.users {
			if bytes.Equal(cert.Raw, raw) {
				if err := signedBy(doc, security, cert); err != nil {
					return "", err
				}
				return t.token(name, until, t.s.ready.URL, cert)
			}
		}
		return "", fmt.Errorf("Invalid credentials")
	}
	return "", fmt.Errorf("unknown key type")
}

// admits checks a request to log in by a token, in its security header.
func (t *sts) admits(message []byte) error {
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(message); err != nil {
		return err
	}
	security := doc.FindElement("//Header/Security")
	if security == nil || len(security.FindElements("Assertion")) != 1 {
		return fmt.Errorf("expected one token")
	}
	assertion := security.FindElement("Assertion")
	holder, err := t.check(assertion)
	if err != nil || holder == nil {
		return err
	}
	if err := fresh(security.FindElement("Timestamp"), time.Now()); err != nil {
		return err
	}
	named := security.FindElement("Signature/KeyInfo/SecurityTokenReference/KeyIdentifier")
	if text(named) != assertion.SelectAttrValue("ID", "") {
		return fmt.Errorf("signed for another token")
	}
	return signedBy(doc, security, holder)
}

// samlHeader is how the Automation API is shown a token.
var samlHeader = regexp.MustCompile(`^SIGN token="([A-Za-z0-9+/=]+)"$`)

// admitsHeader checks a bearer token at the log-in to the Automation API.
func (t *sts) admitsHeader(header string) error {
	match := samlHeader.FindStringSubmatch(header)
	if match == nil {
		return fmt.Errorf("no token")
	}
	packed, err := base64.StdEncoding.DecodeString(match[1])
	if err != nil {
		return err
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	doc := etree.NewDocument()
	if _, err := doc.ReadFrom(unpacked); err != nil {
		return err
	}
	holder, err := t.check(doc.Root())
	if err == nil && holder != nil {
		return fmt.Errorf("of the holder of a key, and not signed")
	}
	return err
}

// check looks at signature, times, audience and user of a token; it returns the holder's certificate if there is one.
func (t *sts) check(assertion *etree.Element) (*x509.Certificate, error) {
	if assertion == nil {
		return nil, fmt.Errorf("no token")
	}
	_, cert := t.identity()
	a, err := dsig.NewDefaultValidationContext(&dsig.MemoryX509CertificateStore{Roots: []*x509.Certificate{cert}}).Validate(assertion)
	if err != nil {
		return nil, err
	}
	now, conditions := time.Now(), a.FindElement("Conditions")
	if conditions == nil {
		return nil, fmt.Errorf("no conditions")
	}
	from, err1 := time.Parse(samlTime, conditions.SelectAttrValue("NotBefore", ""))
	until, err2 := time.Parse(samlTime, conditions.SelectAttrValue("NotOnOrAfter", ""))
	if err1 != nil || err2 != nil || now.Before(from) || !now.Before(until) {
		return nil, fmt.Errorf("not valid now")
	}
	if audience := conditions.FindElement("AudienceRestriction/Audience"); audience != nil && audience.Text() != t.s.ready.URL {
		return nil, fmt.Errorf("for another audience")
	}
	user, confirmation := text(a.FindElement("Subject/NameID")), a.FindElement("Subject/SubjectConfirmation")
	if confirmation == nil {
		return nil, fmt.Errorf("no confirmation")
	}
	switch confirmation.SelectAttrValue("Method", "") {
	case confirm + "bearer":
		if user != t.s.user {
			return nil, fmt.Errorf("unknown user")
		}
		return nil, nil
	case confirm + "holder-of-key":
		t.mu.Lock()
		defer t.mu.Unlock()
		raw, _ := base64.StdEncoding.DecodeString(text(confirmation.FindElement("SubjectConfirmationData/KeyInfo/X509Data/X509Certificate")))
		if known := t.users[user]; known != nil && bytes.Equal(known.Raw, raw) {
			return known, nil
		}
		return nil, fmt.Errorf("unknown user")
	}
	return nil, fmt.Errorf("unknown confirmation")
}

// fresh tells whether a message may still be taken.
func fresh(timestamp *etree.Element, now time.Time) error {
	if timestamp == nil {
		return fmt.Errorf("no timestamp")
	}
	from, err1 := time.Parse(samlTime, text(timestamp.FindElement("Created")))
	until, err2 := time.Parse(samlTime, text(timestamp.FindElement("Expires")))
	if err1 != nil || err2 != nil || now.Before(from.Add(-time.Minute)) || !now.Before(until) {
		return fmt.Errorf("not valid now")
	}
	return nil
}

// signedBy checks the signature of a message in its security header: it must cover the body and the timestamp.
func signedBy(doc *etree.Document, security *etree.Element, cert *x509.Certificate) error {
	info, value := security.FindElement("Signature/SignedInfo"), text(security.FindElement("Signature/SignatureValue"))
	if info == nil {
		return fmt.Errorf("not signed")
	}
	covered := map[string]bool{}
	for _, reference := range info.FindElements("Reference") {
		id := strings.TrimPrefix(reference.SelectAttrValue("URI", ""), "#")
		target := doc.FindElement(fmt.Sprintf("//*[@Id='%s']", id))
		if id == "" || target == nil {
			return fmt.Errorf("reference to nothing")
		}
		sum, _, err := digest(target, reference.FindElement("DigestMethod"))
		if err != nil {
			return err
		}
		if base64.StdEncoding.EncodeToString(sum) != text(reference.FindElement("DigestValue")) {
			return fmt.Errorf("%s was changed after it was signed", target.Tag)
		}
		covered[target.Tag] = true
	}
	if !covered["Body"] || !covered["Timestamp"] {
		return fmt.Errorf("body and timestamp must be signed")
	}
	sum, hash, err := digest(info, info.FindElement("SignatureMethod"))
	if err != nil {
		return err
	}
	signature, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return err
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("no RSA key")
	}
	return rsa.VerifyPKCS1v15(key, hash, sum, signature)
}

// digest is the hash of an element's exclusive canonical form, by the method named.
func digest(e, method *etree.Element) ([]byte, crypto.Hash, error) {
	if method == nil {
		return nil, 0, fmt.Errorf("no method")
	}
	canonical, err := dsig.MakeC14N10ExclusiveCanonicalizerWithPrefixList("").Canonicalize(standalone(e))
	if err != nil {
		return nil, 0, err
	}
	algorithm := method.SelectAttrValue("Algorithm", "")
	switch {
	case strings.HasSuffix(algorithm, "sha256"):
		sum := sha256.Sum256(canonical)
		return sum[:], crypto.SHA256, nil
	case strings.HasSuffix(algorithm, "sha512"):
		sum := sha512.Sum512(canonical)
		return sum[:], crypto.SHA512, nil
	}
	return nil, 0, fmt.Errorf("unknown algorithm %s", algorithm)
}

// standalone is a copy of an element with the namespaces that it stands in.
func standalone(e *etree.Element) *etree.Element {
	out := e.Copy()
	for parent := e.Parent(); parent != nil; parent = parent.Parent() {
		for _, attr := range parent.Attr {
			if name := attr.FullKey(); (attr.Space == "xmlns" || name == "xmlns") && out.SelectAttr(name) == nil {
				out.CreateAttr(name, attr.Value)
			}
		}
	}
	return out
}

func text(e *etree.Element) string {
	if e == nil {
		return ""
	}
	return strings.TrimSpace(e.Text())
}
