# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one session with a vCenter server or an ESXi host.

The session costs three requests (RetrieveServiceContent, Login, Logout). It is logged out in
every path, because orphan sessions live up to two hours and their number is limited. A session
that was given is shared with other tasks: it costs one request and is left as it was found.
A session that expired is logged in again. A call is never repeated after its reply was lost,
unless the caller says that it only reads (:meth:`Connection.read`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import ssl
from dataclasses import dataclass, field
from datetime import datetime
from http.client import HTTPException, HTTPSConnection
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence
from xml.parsers.expat import ExpatError

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    AuthenticationFailed,
    BackupError,
    CertificateRejected,
    ConnectionFailed,
    InvalidInput,
    MissingRequirement,
    NotFound,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import (
    SoapStubAdapter,
    VmomiSupport,
    require,
    vim,
    vmodl,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.session import Session

# Every supported server (6.7 and later) understands this version; a newer one is chosen from its answer.
FIRST_VERSION = "6.7"
CONNECT_TIMEOUT = 30  # seconds
READ_TIMEOUT = 300  # seconds; longer than any single call that we wait in
IDLE_TIMEOUT = 30  # seconds; an older connection may have been closed by the server, so a new one is opened
COOKIE = "vmware_soap_session"

_NEXT_STEPS = {
    "TaskInProgress": "Wait until the other task has ended, then run this one again.",
    "TooManySnapshotLevels": "Remove snapshots that are no longer needed.",
    "InsufficientStorageSpace": "Free some space on the datastore.",
    "NoDiskSpace": "Free some space on the datastore.",
    "FileLocked": "Find out which host or backup proxy holds the file, and let it go.",
    "InvalidState": "Check that the object is connected and in a state that allows this.",
    "InvalidPowerState": "Change the power state of the virtual machine.",
    "MemorySnapshotOnIndependentDisk": "Take the snapshot without memory (memory_dump: false).",
    "HostNotConnected": "Connect the host to vCenter again.",
    "HostCommunication": "Check the host and its connection to vCenter.",
    "RestrictedVersion": "This needs a licence that the host does not have.",
    "MethodNotFound": "This needs a newer release of the server.",
}

_DROPPED = (ConnectionError, HTTPException, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_UNREADABLE = (ExpatError, UnicodeDecodeError)


@dataclass(frozen=True)
class Endpoint:
    """Where and how to log in. ``ca_path`` is a PEM file or a directory of them; unset means the system's store.

    ``session`` is the text of a session to use instead of logging in (see ``session.py``).
    """

    hostname: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    port: int = 443
    validate_certs: bool = True
    ca_path: str | None = None
    proxy_host: str | None = None
    proxy_port: int | None = None
    session: str | None = field(default=None, repr=False)

    @property
    def can_log_in(self) -> bool:
        """Whether there are a user name and a password."""
        return bool(self.username and self.password)

    @property
    def user(self) -> str:
        """The user, for messages."""
        return self.username or "The user of the session"

    @property
    def address(self) -> str:
        """Host and port as in a URL."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{host}:{self.port}"

    def ssl_context(self) -> ssl.SSLContext:
        """TLS settings for a connection to this endpoint; raises InvalidInput for an unusable ``ca_path``."""
        if not self.validate_certs:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        is_directory = self.ca_path is not None and os.path.isdir(self.ca_path)
        try:
            return ssl.create_default_context(
                cafile=None if is_directory else self.ca_path, capath=self.ca_path if is_directory else None
            )
        except OSError as error:
            raise InvalidInput(
                f"The certificates in {self.ca_path} cannot be read: {error}.",
                "Give ca_path (or VMWARE_CA_PATH) a PEM file or a directory prepared by `openssl rehash`.",
            ) from error

    def http_session(self) -> Any:
        """A requests.Session with this endpoint's certificates and proxy; the environment has no say in it."""
        try:
            import requests  # takes a quarter of a module's start, and few modules come here
        except ImportError as error:
            raise MissingRequirement(
                "The Python library requests is not installed.", "Install it: python -m pip install requests."
            ) from error
        session = requests.Session()
        # REQUESTS_CA_BUNDLE and the proxy variables would silently override what the task says.
        session.trust_env = False
        system = ssl.get_default_verify_paths()
        session.verify = self.validate_certs and (self.ca_path or system.cafile or system.capath or True)
        if self.proxy_host:
            session.proxies = {"https": f"http://{self.proxy_host}:{self.proxy_port or 80}"}
        return session


class _Wire(HTTPSConnection):
    """Connects under one time limit, talks under another, and hands on the certificate of the server."""

    def __init__(self, host: str, *, on_certificate: Callable[[bytes], None], **kwargs: Any) -> None:
        super().__init__(host, timeout=CONNECT_TIMEOUT, **kwargs)
        self._on_certificate = on_certificate

    def connect(self) -> None:
        super().connect()
        self._on_certificate(self.sock.getpeercert(binary_form=True) or b"")
        self.sock.settimeout(READ_TIMEOUT)


class Connection:
    """A session; use it in a ``with`` block.

    ``content`` is the ServiceContent and ``stub`` the SOAP stub for making managed objects
    (``vim.VirtualMachine(moid, c.stub)``). What belongs to the session (views, collectors, the cookie) is lost
    when it has to be renewed; ``logins`` counts how often that was.

    ``shared`` tells that the session was given and is others' too: what is made in it has to be removed again,
    and nothing in it that others may use (its own property collector) is touched. One that has ended is replaced
    by one of our own if there is a password.
    """

    def __init__(self, endpoint: Endpoint, log_in: Callable[[Connection], Any] | None = None) -> None:
        """Nothing is connected yet.

        :param log_in: logs in and returns the UserSession; by default with user name and password
        """
        self.endpoint = endpoint
        self._how = log_in or _by_password
        self.given = Session.parse(endpoint.session) if endpoint.session else None
        self.shared = self.given is not None
        self.logins = 0
        self.interrupted = False  # the server may still be answering a wait of the session's own collector
        self.login_time: datetime | None = None  # by the server's clock; of a session that was given it is not known
        self.content: Any = None
        self.stub: Any = None
        self._certificate = b""
        self._latest = ""  # the call under way, for messages
        self._beside: list[Any] = []  # stubs of other services in the same session

    def __enter__(self) -> Connection:
        require()
        self.stub = self._make_stub("/sdk", newest_version(FIRST_VERSION))
        with self._errors():
            instance = vim.ServiceInstance("ServiceInstance", self.stub)
            self.content = instance.RetrieveContent()
            self.stub.ComputeVersionInfo(newest_version(self.about.apiVersion))
            try:
                if self.given is not None:
                    self._join(self.given)
                else:
                    self._login()
            except BaseException:
                self.__exit__()  # the server may have logged in although the answer was not read
                raise
        return self

    def __exit__(self, *exc_info: Any) -> None:
        # Nothing that goes wrong here may hide how the work ended.
        for _attempt in range(0 if self.shared else 2):
            try:
                self.content.sessionManager.Logout()
                break
            except _DROPPED:
                continue
            except (OSError, vmodl.MethodFault, *_UNREADABLE):
                break
        for stub in (self.stub, *self._beside):
            stub.DropConnections()

    @property
    def about(self) -> vim.AboutInfo:
        return self.content.about

    @property
    def is_vcenter(self) -> bool:
        return self.about.apiType == "VirtualCenter"

    @property
    def vcenter(self) -> str | None:
        """The vCenter's own UUID; None of a host on its own."""
        return self.about.instanceUuid or None if self.is_vcenter else None

    def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a pyVmomi method once; an expired session is renewed first.

        :raises VsphereFault: the server refused; ``details["fault"]`` is the fault's type name
        :raises NotFound: the managed object is gone
        :raises ConnectionFailed: the reply was lost: the call may have happened or not
        """
        with self._errors():
            return self._in_session(functools.partial(func, *args, **kwargs))

    def read(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Like :meth:`call`, for methods without side effects: repeated once when the connection drops."""
        request = functools.partial(func, *args, **kwargs)
        with self._errors():
            try:
                return self._in_session(request)
            except _DROPPED:
                return self._in_session(request)

    def retrieve(self, objects: Iterable[Any], properties: Mapping[Any, Sequence[str]]) -> dict[Any, dict[str, Any]]:
        """Read properties of several managed objects in one request (and one more per further page).

        :param objects: managed objects, of any mix of types
        :param properties: managed type -> property paths
        :returns: object -> {path: value}; an unset or unreadable property is a missing key
        """
        specs = [vmodl.query.PropertyCollector.ObjectSpec(obj=obj) for obj in objects]
        return self.collect(specs, properties)

    def collect(self, object_specs: list[Any], properties: Mapping[Any, Sequence[str]]) -> dict[Any, dict[str, Any]]:
        """Like :meth:`retrieve`, from prepared ObjectSpecs (with traversals)."""
        found: dict[Any, dict[str, Any]] = {}
        for entry in self.contents(object_specs, properties):
            found.setdefault(entry.obj, {}).update({prop.name: prop.val for prop in entry.propSet})
        return found

    def contents(
        self, object_specs: list[Any], properties: Mapping[Any, Sequence[str]], page: int | None = None
    ) -> Iterator[Any]:
        """What RetrievePropertiesEx answers (ObjectContent with ``missingSet``), in pages as they are asked for.

        :param page: objects in one answer at most; the server may give fewer
        """
        if not object_specs:
            return
        collector = self.content.propertyCollector
        spec = vmodl.query.PropertyCollector.FilterSpec(
            objectSet=object_specs,
            propSet=[
                vmodl.query.PropertyCollector.PropertySpec(type=kind, pathSet=list(paths))
                for kind, paths in properties.items()
            ],
        )
        options = vmodl.query.PropertyCollector.RetrieveOptions()
        if page is not None:
            options.maxObjects = page
        answer = self.read(collector.RetrievePropertiesEx, [spec], options)
        while answer is not None:
            yield from answer.objects
            answer = self.read(collector.ContinueRetrievePropertiesEx, answer.token) if answer.token else None

    @contextlib.contextmanager
    def view(self, start: Any, kinds: Sequence[Any]) -> Iterator[Any]:
        """A container view of all objects of these types below ``start``, for a ``with`` block; one request.

        In a shared session it is destroyed at the end (another request); in our own it ends with the session.
        """
        view = self.read(self.content.viewManager.CreateContainerView, start, list(kinds), True)
        try:
            yield view
        finally:
            if self.shared:
                with contextlib.suppress(BackupError):
                    self.call(view.DestroyView)

    def thumbprint(self) -> str:
        """SHA-1 of the server's leaf certificate as this connection saw it, like ``AA:BB:...``."""
        digest = hashlib.sha1(self._certificate, usedforsecurity=False).hexdigest().upper()
        return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))

    def soap_cookie(self) -> str:
        """``name=value`` of the session cookie. It is a secret."""
        return self.stub.cookie.split(";", 1)[0]

    def http(self) -> Any:
        """A requests.Session inside this session, for the datastore browser (``/folder``)."""
        session = self.endpoint.http_session()
        session.headers["Cookie"] = self.soap_cookie()
        return session

    def beside(self, path: str, namespace: str) -> Any:
        """A SOAP stub for another service of this vCenter (``/vslm/sdk``, ``vslm``), inside this session.

        The service makes a session of its own from vCenter's, which it is shown with every request. When
        vCenter's has to be renewed, so has the other.
        """
        stub = self._make_stub(path, newest_version(self.about.apiVersion, namespace))
        self._beside.append(stub)
        self._admit(stub)
        return stub

    def _admit(self, stub: Any) -> None:
        stub.cookie = ""
        stub.requestContext = {"vcSessionCookie": self.soap_cookie().split("=", 1)[1].strip('"')}

    def _make_stub(self, path: str, version: str) -> Any:
        stub: Any = SoapStubAdapter(
            host=self.endpoint.hostname,
            port=self.endpoint.port,
            path=path,
            version=version,
            sslContext=self.endpoint.ssl_context(),
            httpProxyHost=self.endpoint.proxy_host,
            httpProxyPort=self.endpoint.proxy_port or 80,
            connectionPoolTimeout=IDLE_TIMEOUT,
        )
        stub.scheme = functools.partial(_Wire, on_certificate=self._keep_certificate)
        stub.InvokeMethod = functools.partial(self._invoke, stub.InvokeMethod)
        return stub

    def _invoke(self, invoke: Callable[..., Any], managed: Any, method: Any, *args: Any) -> Any:
        self._latest = f"{method.wsdlName} of {managed._GetMoId()}"
        return invoke(managed, method, *args)

    def _keep_certificate(self, certificate: bytes) -> None:
        self._certificate = certificate

    def _join(self, session: Session) -> None:
        # RetrieveServiceContent was sent without it: another server gets no secret.
        if session.server != self.vcenter:
            raise AuthenticationFailed(
                f"The session is one of another server than {self.endpoint.address}.",
                "Give hostname the server that holdfast.backup.vcenter_session logged in to, or log in to this one.",
            )
        self.stub.SetSessionId(None)
        self.stub.cookie = session.soap

    def log_in(self) -> None:
        """Log in, though a session was given; this one is our own."""
        with self._errors():
            self._login()

    def leave_open(self, rest: str | None = None) -> Session:
        """Make the session one that others use: it is not logged out at the end.

        :param rest: ID of a session of the Automation API to give beside it
        """
        self.shared = True
        return Session(self.soap_cookie(), rest, self.vcenter)

    def close_at_end(self) -> None:
        """Make the session our own: it is logged out at the end."""
        self.shared = False

    def _login(self) -> None:
        # Before the log-in: if its answer is lost there may be a session all the same.
        self.stub.SetSessionId(None)
        self.shared = False
        user_session = self._how(self)
        self.logins += 1
        self.login_time = user_session.loginTime
        for stub in self._beside:
            self._admit(stub)

    def _in_session(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except vim.fault.NotAuthenticated:
            # The server did nothing, so any call may be repeated.
            self._login()
            return request()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except vmodl.MethodFault as fault:
            raise _from_fault(fault, self.endpoint, self._latest) from fault
        except (OSError, HTTPException, *_UNREADABLE) as error:
            raise broken_wire(error, self.endpoint) from error


def _by_password(c: Connection) -> Any:
    if not c.endpoint.can_log_in:
        raise AuthenticationFailed(
            f"The session with {c.endpoint.address} has ended, and there is no password to log in again.",
            "Run holdfast.backup.vcenter_session again, or give username and password too.",
            fault="NotAuthenticated",
        )
    return c.content.sessionManager.Login(c.endpoint.username, c.endpoint.password, None)


def newest_version(api_version: str, namespace: str = "vim") -> str:
    """The newest API version of pyVmomi (its internal name) that a server of ``api_version`` understands.

    :param namespace: the service: ``vim``, ``vslm``, ``pbm``
    """
    wanted = _numbers(api_version)
    known = {
        numbers: name
        for name, identifier in VmomiSupport.versionIdMap.items()
        if name.startswith(f"{namespace}.version.") and (numbers := _numbers(identifier))
    }
    usable = [numbers for numbers in known if numbers <= wanted]
    if not usable:
        raise ConnectionFailed(
            f"The server speaks version {api_version} of the vSphere API, which pyVmomi does not know.",
            "Use a server of version 6.7 or later, or another version of pyVmomi.",
        )
    return known[max(usable)]


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    if not all(part.isdigit() for part in parts):
        return ()
    return tuple(int(part) for part in [*parts, "0", "0", "0"][:4])


def fault_name(fault: Any) -> str:
    """``FileFault`` for a pyVmomi fault of type ``vim.fault.FileFault``."""
    return type(fault).__name__.rsplit(".", 1)[-1]


def fault_text(fault: Any) -> str:
    """The server's own words on a fault, with its messages; the type's name when it has none."""
    messages = [fault.msg, *(message.message for message in fault.faultMessage or ())]
    words = [text.strip().rstrip(".") for text in messages if text and text.strip()]
    return "; ".join(dict.fromkeys(words)) or fault_name(fault)


def next_step(fault: str) -> str:
    """What a user can do about a fault, by the name of its type."""
    return _NEXT_STEPS.get(fault, "Look at the tasks and events of the server for the cause.")


def _from_fault(fault: Any, endpoint: Endpoint, call: str) -> BackupError:
    subject = getattr(fault, "obj", None) or getattr(fault, "object", None)
    moid = subject._GetMoId() if subject is not None else None
    privilege = getattr(fault, "privilegeId", None)
    return refusal(endpoint, fault_name(fault), fault_text(fault), moid, privilege, call)


def refusal(
    endpoint: Endpoint,
    name: str,
    text: str,
    moid: str | None = None,
    privilege: str | None = None,
    call: str = "the call",
) -> BackupError:
    """The error for a fault, by whichever API it came.

    :param name: the fault's type name
    :param text: the server's own words
    :param moid: the managed object that the fault is about
    :param call: the method and the object that it was called on
    """
    if name in ("InvalidLogin", "PasswordExpired"):
        return AuthenticationFailed(
            f"{endpoint.address} refused the user name or password of {endpoint.username}.",
            "Check username and password (or VMWARE_USER and VMWARE_PASSWORD); a locked account looks the same.",
            fault=name,
        )
    if name == "ManagedObjectNotFound":
        return NotFound(
            f"The object {moid or ''} does not exist on {endpoint.address} (any more).".replace("  ", " "),
            "Check the ID; it may have been removed in the meantime.",
            fault=name,
            moid=moid,
        )
    if name == "NoPermission" and privilege:
        return VsphereFault(
            f"{endpoint.user} lacks the privilege {privilege} on {moid or 'the object'}.",
            "Grant it by a role on that object or above it.",
            fault=name,
            privilege=privilege,
        )
    return VsphereFault(f"{endpoint.address} refused {call}: {text} ({name}).", next_step(name), fault=name)


def broken_wire(error: BaseException, endpoint: Endpoint) -> BackupError:
    """The error for what ssl, socket and the HTTP libraries raise."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CertificateRejected(
            f"The certificate of {endpoint.address} is not trusted: {error.verify_message}.",
            "Give ca_path (or VMWARE_CA_PATH) the CA that signed it, and hostname a name that it contains; "
            "validate_certs=false switches the check off.",
        )
    way = f"{endpoint.address} by the proxy {endpoint.proxy_host}" if endpoint.proxy_host else endpoint.address
    if isinstance(error, socket.gaierror):
        cause, step = f"the name cannot be resolved ({error.strerror})", "Check hostname and the DNS of the proxy host."
    elif isinstance(error, socket.timeout):
        cause, step = "no answer in time", "Check that the port is open from here and that the server is up."
    elif isinstance(error, ConnectionRefusedError):
        cause, step = "connection refused", "Check hostname and port, and that the server is up."
    elif isinstance(error, ssl.SSLError):
        cause, step = f"TLS failed ({error})", "Check that the port is the server's HTTPS port."
    elif isinstance(error, _UNREADABLE):
        cause, step = "the answer is no SOAP message", "Check that hostname and port are those of a vCenter or ESXi."
    else:
        cause, step = str(error) or type(error).__name__, "Check the network and the server, then run the task again."
    return ConnectionFailed(f"The connection to {way} failed: {cause}.", step)
