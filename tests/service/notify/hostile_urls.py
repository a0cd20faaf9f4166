"""URLs that the service must not call, whether they are registered or delivered to, and where names lead in tests.

The families are those of the known attacks: other notations of loopback and private addresses, wrapped IPv4, metadata
services, names that lead inside, other protocols, and parsers that disagree.
"""

PUBLIC = "93.184.216.34"

NAMES = {
    "public.example": [PUBLIC],
    "public6.example": ["2606:2800:220:1::1"],
    "dns64.example": ["64:ff9b::5db8:d822"],  # a public IPv4 address behind NAT64
    "private.example": ["10.0.0.5"],
    "mixed.example": [PUBLIC, "10.0.0.5"],
    "mixed6.example": [PUBLIC, "::1"],
    "loop.example": ["127.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::a00:5"],
    "sixtofour.example": ["2002:7f00:1::"],
    "meta.example": ["169.254.169.254"],
    "meta-mapped.example": ["::ffff:169.254.169.254"],
    "azure.example": ["168.63.129.16"],
    "local.example": ["fe80::1"],
    "ula.example": ["fd12::1"],
    "any.example": ["0.0.0.0"],
    "localhost": ["127.0.0.1", "::1"],
    "metadata.google.internal": ["169.254.169.254"],
}
"""What is not listed and is no address is not known."""

METADATA = [
    "https://169.254.169.254/latest/meta-data/",
    "https://[::ffff:169.254.169.254]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[::169.254.169.254]/",
    "https://[64:ff9b:1::a9fe:a9fe]/",
    "https://[2002:a9fe:a9fe::1]/",
    "https://169.254.170.2/v2/credentials",
    "https://169.254.170.23/",
    "https://[fd00:ec2::254]/",
    "https://[fd00:ec2::23]/",
    "https://[fd20:ce::254]/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    "https://192.0.0.192/",
    "https://metadata.google.internal/computeMetadata/v1/",
    "https://METADATA.google.internal/",
    "https://metadata.goog/",
    "https://metadata/",
    "https://instance-data/",
    "https://meta.example/",
    "https://meta-mapped.example/",
    "https://azure.example/",
]
"""Refused whatever networks the operator lists."""

FORMS = [
    # other notations of addresses
    "https://0/", "https://127.1/", "https://127.0.1/", "https://2130706433/", "https://0x7f000001/",
    "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://017700000001/", "https://127.0.0.0x1/",
    "https://127.0.0.1./", "https://127.0.0.256/", "https://１２７．０．０．１/", "https://①②⑦.⓪.⓪.①/",
    "https://127。0。0。1/", "https://public.example/\u212a", "https://\u212a.example/",
    "https://[::1%25lo]/", "https://[::1%lo]/", "https://[fe80::1%25eth0]/", "https://[127.0.0.1]/", "https://[::1/",
    "https://::1/", "https://[v1.fe]/", "https://0xa9fea9fe/",
    # other protocols and ports
    "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "ftp://public.example/", "data:text/plain,x",
    "dict://public.example:11211/stat", "ldap://public.example/", "javascript:alert(1)", "//public.example/",
    "public.example", "https:/public.example", "https://", "https:///x", "", "https://public.example:22/",
    "https://public.example:25/", "https://public.example:6379/", "https://public.example:11211/",
    "https://public.example:0/", "https://public.example:65536/", "https://public.example:-1/",
    "https://public.example:/", "https://public.example:443x/", "http://public.example/",
    # parsers that disagree
    "https://u:p@public.example/", "https://public.example@127.0.0.1/", "https://public.example\\@127.0.0.1/",
    "https://public.example#@127.0.0.1/", "https://public.example/#x", "https://public.example /",
    "https://public.example\t/", "https://public.example/\r\nHost: 127.0.0.1", "https://public.example/\x00",
    "https://public.example%2f@127.0.0.1/", "https://public.example%00.evil/", "https://-public.example/",
    "https://public..example/", "https://.public.example/", "https://пример.example/",
    "https://a" + "a" * 63 + ".example/",
    "https://public.example/" + "a" * 5000, "https://" + "a." * 200 + "example/",
]  # fmt: skip
"""Refused by their form or by what no network setting changes."""

PRIVATE = [
    "https://127.0.0.1/", "https://127.255.255.254/", "https://10.0.0.1/", "https://172.16.0.1/",
    "https://172.31.255.255/", "https://192.168.0.1/", "https://100.64.0.1/", "https://169.254.1.1/",
    "https://0.0.0.0/", "https://0.1.2.3/", "https://192.0.0.8/", "https://192.0.2.1/", "https://198.18.0.1/",
    "https://198.19.255.255/", "https://198.51.100.1/", "https://203.0.113.1/", "https://224.0.0.1/",
    "https://239.255.255.250/", "https://240.0.0.1/", "https://255.255.255.255/", "https://192.88.99.1/",
    "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/",
    "https://[::ffff:10.0.0.1]/", "https://[::127.0.0.1]/", "https://[::ffff:0:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/", "https://[64:ff9b::10.0.0.1]/", "https://[64:ff9b:1::7f00:1]/",
    "https://[2002:7f00:1::]/", "https://[2002:0a00:1::]/", "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "https://[2001:db8::1]/", "https://[3fff::1]/", "https://[100::1]/", "https://[5f00::1]/", "https://[fc00::1]/",
    "https://[fd12:3456::1]/", "https://[fe80::1]/", "https://[fec0::1]/", "https://[ff02::1]/",
    "https://localhost/", "https://LOCALHOST/", "https://private.example/", "https://mixed.example/",
    "https://mixed6.example/", "https://loop.example/", "https://mapped.example/", "https://nat64.example/",
    "https://sixtofour.example/", "https://local.example/", "https://ula.example/", "https://any.example/",
    "https://unknown.example/", "https://localhost.:443/",
]  # fmt: skip
"""Refused unless the operator lists the network."""

HOSTILE = [*METADATA, *FORMS, *PRIVATE]
ALLOWED = [
    "https://public.example/", "https://public.example:8443/a?b=c", "https://PUBLIC.example/", "https://93.184.216.34/",
    "https://public6.example/", "https://[2606:2800:220:1::1]:8443/", "https://dns64.example/",
    "https://public.example/%20~!$&'()*+,;=:@/?x=[y]",
]  # fmt: skip
