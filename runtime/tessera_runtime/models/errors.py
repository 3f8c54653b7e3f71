"""Every way in which fetching a model can fail.

::

    FetchError
    ├── InvalidUri            not a URI of one file
    ├── SchemeUnsupported     a scheme that is not allowed here, or whose library is not installed
    ├── NotFound              the store has no such file
    ├── Denied                the store refuses these credentials
    │   ├── AddressForbidden      the store's address is one that models may not come from
    │   └── CredentialsInvalid    the Secret is not one for this store
    ├── DigestMismatch        the file is not the one that was asked for
    ├── TooLarge              over the size limit, or larger than the cache
    ├── NoSpace               the disk is full and nothing can be evicted
    └── Unreachable           the store did not answer, or broke off repeatedly

Messages name the source without user, password or query, and causes are cut off (``from None``): the texts
of the libraries below repeat URLs and headers, which may hold credentials.
"""

from __future__ import annotations


class FetchError(Exception):
    """Base; ``temporary`` says whether the same call may succeed later."""

    temporary = False


class InvalidUri(FetchError): ...


class SchemeUnsupported(FetchError): ...


class NotFound(FetchError): ...


class Denied(FetchError): ...


class AddressForbidden(Denied): ...


class CredentialsInvalid(Denied): ...


class DigestMismatch(FetchError): ...


class TooLarge(FetchError): ...


class NoSpace(FetchError):
    temporary = True


class Unreachable(FetchError):
    temporary = True
