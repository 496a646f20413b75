"""What doctor looks at in the connection itself: who may read it, and whether it leads to whom we mean."""

from daemon.doctor_check import Check, Complaint, Complaints, Patient, warning
from daemon.tls import VERIFIED, Link, link_of


async def check_tls(patient: Patient) -> Complaints:
    """See that a connection to another host is encrypted, and its other end known."""
    for complaint in complaints(link_of(patient.connection)):
        yield complaint


def complaints(link: Link) -> list[Complaint]:
    """Say what is wrong with a connection. Pure."""
    if not link.is_remote:
        return []
    if not link.is_encrypted:
        return [
            warning(
                f"the connection to {link.address} is not encrypted: whoever is in between can read and change it",
                f"Set ssl = on at the server, and add {VERIFIED} to RECALCD_DATABASE_URL.",
            )
        ]
    if not link.is_demanded:
        return [
            warning(
                f"the connection to {link.address} is encrypted only because the server offered it: whoever is in "
                "between can answer that it does not",
                f"Add {VERIFIED} to RECALCD_DATABASE_URL.",
            )
        ]
    if not link.is_verified:
        return [
            warning(
                f"the connection to {link.address} is encrypted, but nobody checks to whom: sslmode=require takes any "
                "certificate",
                f"Write {VERIFIED} instead of sslmode=require.",
            )
        ]
    if not link.names_host:
        return [
            warning(
                f"the certificate of {link.address} may be that of any host of its authority",
                "Write sslmode=verify-full in RECALCD_DATABASE_URL, unless the authority signs for this server alone.",
            )
        ]
    return []


TLS_CHECKS = (Check("tls", check_tls, "local, or encrypted and verified"),)
