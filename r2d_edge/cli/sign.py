"""`r2d-edge sign`: a signature that says who made a bundle."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="sign")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--secret-key", required=True, metavar="FILE", help="A secret key that `minisign -G` made.")
@click.option("--password-file", metavar="FILE", help="Holds the key's password; otherwise a terminal asks for it.")
@click.option("-o", "--output", metavar="FILE", help="Where the signature goes.  [default: BUNDLE.minisig]")
def command(bundle: str, secret_key: str, password_file: str | None, output: str | None) -> None:
    """Signs BUNDLE (a folder or a .zip) after checking it whole.

    The signature covers manifest.json, which names every file with its hash; `r2d-edge verify BUNDLE --public-key KEY`
    and `minisign -V -m BUNDLE/manifest.json -x BUNDLE.minisig` check it. Needs the extra `sign`.
    """
    from r2d_edge.cli.verify import open_named
    from r2d_edge.integrity.minisign import SecretKey, needs_password, read_small, require_cryptography
    from r2d_edge.integrity.signing import sign_bundle, signature_file
    from r2d_edge.rendering import printable

    require_cryptography()
    text = read_small(Path(secret_key))
    opened, path = open_named(bundle)
    password = None
    if needs_password(text):
        if password_file is not None:
            password = read_small(Path(password_file)).removesuffix("\n").removesuffix("\r")
        else:
            password = click.prompt("Password of the secret key", hide_input=True, err=True)
    key = SecretKey.parse(text, password)
    target = Path(output) if output else signature_file(path)
    signature = sign_bundle(opened, key, target)
    click.echo(printable(f"{target}: {signature.trusted_comment}"))
    click.echo(printable(f"verify with: r2d-edge verify {bundle} --public-key {key.public.to_text().splitlines()[1]}"))
