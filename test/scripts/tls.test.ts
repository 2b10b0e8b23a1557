/** Who may speak between proxy, cache and restore-from-socket: the real commands, with certificates and with a key. */
import { randomBytes } from 'node:crypto'
import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { within } from '../expect.ts'
import { authority, authorityLine, requestLine, signLine } from '../support/authority.ts'
import { startCache, startProxy } from '../support/daemons.ts'
import { type FakeDump, fakeDump, fakeRestore } from '../support/fake-criu.ts'
import { type Ran, type Running, root, run, start, temporary } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('scripts/tls')

const ca = authority()
const other = authority()
const { path: folder, remove } = temporary()
const inFolder = (name: string): string => join(folder, name)

function keyFile(name: string, mode = 0o600): string[] {
  writeFileSync(inFolder(name), randomBytes(32))
  chmodSync(inFolder(name), mode)
  return ['--key-file', inFolder(name)]
}

const key = keyFile('key')
for (const name of ['cache', 'proxy', 'lost']) ca?.issue(name)
ca?.issue('expired', { days: -1 })
ca?.issue('elsewhere', { host: 'elsewhere' })
ca?.issue('for-servers', { purpose: 'serverAuth' })
ca?.issue('for-clients', { purpose: 'clientAuth' })
ca?.revoke('none.crl')
other?.issue('stranger')

/** The stranger's certificate, at an end that trusts the right CA. */
const stranger =
  ca === undefined || other === undefined ? [] : [...other.options('stranger'), '--tls-cacert', ca.file('ca.pem')]

const images = { 'pages-1.img': pattern(3_000_000, 1), 'core-1.img': pattern(2000, 2), 'empty.img': Buffer.alloc(0) }

async function dumpAll(dump: FakeDump): Promise<void> {
  await Promise.all(Object.entries(images).map(([name, bytes]) => dump.image(name, bytes)))
  await dump.image('inventory.img', Buffer.from('inventory'))
  dump.close()
}

let count = 0

/** A cache with these options, ended afterwards; it must have lived until then, and never said anything unforeseen. */
async function withCache(options: string[], body: (cache: Running, port: string) => Promise<void>): Promise<void> {
  const { cache, port } = await startCache(inFolder(`target-${++count}`), options)
  try {
    await body(cache, port)
    assert.is(cache.child.exitCode, null, 'the cache lives on')
  } finally {
    await cache.stop()
  }
  assert.not.match(cache.stderr(), /this is a bug|Warning/)
}

/** A whole way: dump, proxy, cache, and out of the cache by both doors. */
async function crosses(cache: Running, port: string, options: string[]): Promise<void> {
  const source = inFolder(`source-${++count}`)
  const proxy = await startProxy(source, port, ['--address', 'localhost', ...options])
  await dumpAll(fakeDump(join(source, 'streamer-capture.sock')))
  await proxy.says(/sent and sealed by the cache: 4 images/)
  await proxy.stop()
  const out = inFolder(`out-${count}`)
  const pulled = await pull(port, options, out)
  assert.is(pulled.code, 0, pulled.stderr)
  for (const [name, bytes] of Object.entries(images)) assert.ok(readFileSync(join(out, name)).equals(bytes), name)
  const target = /listening on (\S+)\/streamer-serve.sock/.exec(cache.stderr())?.[1] ?? ''
  const criu = fakeRestore(join(target, 'streamer-serve.sock'))
  assert.ok((await criu.image('pages-1.img'))?.equals(images['pages-1.img']))
  criu.close()
}

function pull(port: string, options: string[], out = inFolder('refused'), host = 'localhost'): Promise<Ran> {
  return run('restore-from-socket', ['--from', `${host}:${port}`, '--to-dir', out, '--timeout', '2', ...options])
}

/** Both clients are refused with these two lines, and the cache says its own line. */
async function refused(
  cache: Running,
  port: string,
  options: string[],
  said: { client: string; hint: string; cache?: RegExp; host?: string; code?: number },
): Promise<void> {
  const { host = 'localhost' } = said
  const before = cache.stderr().length
  const pulled = await pull(port, options, undefined, host)
  // OpenSSL 3.5, of Node.js 24, has another word for it.
  const alert = /sslv3|ssl\/tls/.exec(pulled.stderr)?.[0] ?? ''
  const client = said.client.replace('PEER', `${host}:${port}`).replace('ALERT', `${alert} alert handshake failure`)
  const lines = `error: ${client}\nrestore-from-socket: hint: ${said.hint}\n`
  assert.is(pulled.stderr, `restore-from-socket: ${lines}`)
  assert.is(pulled.code, said.code ?? 3)
  assert.not(existsSync(inFolder('refused')))
  if (said.cache !== undefined) {
    await within(cache.says(said.cache), String(said.cache))
    assert.match(cache.stderr().slice(before), said.cache)
  }
}

/** A proxy is refused too, and CRIU's dump fails. */
async function proxyRefused(port: string, options: string[], line: RegExp): Promise<void> {
  const source = inFolder(`source-${++count}`)
  const proxy = await startProxy(source, port, ['--address', 'localhost', '--timeout', '2', ...options])
  const criu = fakeDump(join(source, 'streamer-capture.sock'))
  const failed = await criu.image('pages-1.img', pattern(20_000_000)).then(
    () => false,
    () => true,
  )
  criu.close()
  assert.ok(failed, 'the dump fails')
  await within(proxy.says(line), String(line))
  assert.is(proxy.child.exitCode, null, 'the proxy lives on')
  assert.is((await proxy.stop()).code, 143)
}

const log = "the cache's log says why"
const ofCa = 'is it of the CA in --tls-cacert?'
const notAccepted = "expired, revoked, of another CA? the cache's log says it"

test('with a key: a snapshot crosses, and the key is in no message', () =>
  withCache(key, async (cache, port) => {
    await crosses(cache, port, key)
    const secret = readFileSync(inFolder('key'))
    for (const text of [secret.toString('latin1'), secret.toString('hex'), secret.toString('base64')]) {
      assert.not(cache.stderr().includes(text))
    }
  }))

test('with a key: another key, no key and a certificate are refused', () =>
  withCache(key, async (cache, port) => {
    await refused(cache, port, keyFile('wrong'), {
      client: 'PEER does not have our key',
      hint: 'is it the same --key-file at both ends, and does the cache use one?',
      cache: /failed: (the last one: )?the client has another key\n/,
    })
    await proxyRefused(
      port,
      keyFile('wrong'),
      /failed: localhost:\d+ does not have our key\nproxy: hint: is it the same/,
    )
    if (ca !== undefined) {
      await refused(cache, port, ca.options('proxy'), {
        client: 'PEER did not accept our certificate (ALERT)',
        hint: notAccepted,
        cache: /failed: (the last one: )?the client has no key\n/,
      })
    }
    await proxyRefused(
      port,
      [],
      /failed: [^\n]+\nproxy: hint: the sender failed; or it is a cache that wants --tls or --key-file/,
    )
    await cache.says(
      /failed: (?:the last one: )?the client does not speak TLS\ncache: hint: start it with --key-file too\n/,
    )
    await crosses(cache, port, key)
  }))

test('with a key: a refusal arrives with its reason, and a cache that dies fails the dump', async () => {
  const full = [...key, '--max-memory', '6M']
  await withCache(full, (_, port) =>
    proxyRefused(port, key, /failed: the target refused: the memory for images is full/),
  )
  const { cache, port } = await startCache(inFolder('dies'), key)
  const source = inFolder(`source-${++count}`)
  const proxy = await startProxy(source, port, ['--timeout', '2', ...key])
  const criu = fakeDump(join(source, 'streamer-capture.sock'))
  const pipe = criu.open('pages-1.img')
  // More than the pipe and the proxy hold: the link is there.
  await writeAll(pipe, pattern(10_000_000))
  // CRIU goes on meanwhile, or its silence would be the reason.
  const rest = writeAll(pipe, pattern(64_000_000)).catch((reason: Error) => reason)
  await cache.stop('SIGKILL')
  await within(proxy.says(/failed: (the target closed the link|.*went away|cannot connect)/))
  assert.instance(await rest, Error)
  closeFd(pipe)
  criu.close()
  await proxy.stop()
})

test('with a key, any address is allowed; without, only with --insecure', async () => {
  const { cache } = await startAnywhere(key)
  assert.match((await cache.stop()).stderr, /listening on 0\.0\.0\.0:/)
  const plain = await run('cache', ['--port', '0', '--address', '0.0.0.0', '-D', inFolder('open')])
  assert.is(plain.code, 2)
  assert.match(
    plain.stderr,
    /plain TCP to or from 0\.0\.0\.0[^\n]*\ncache: hint: use --tls or --key-file, or tunnel it: /,
  )
})

async function startAnywhere(options: string[]): Promise<{ cache: Running }> {
  const cache = start('cache', ['--port', '0', '--address', '0.0.0.0', '-D', inFolder('anywhere'), ...options])
  await cache.says(/streamer-serve/)
  return { cache }
}

test('a key that others can read is refused, and nothing is started', async () => {
  for (const command of ['cache', 'proxy']) {
    const ran = await run(command, ['--port', '9', '-D', inFolder('never'), ...keyFile('open', 0o644)])
    assert.is(ran.code, 2)
    const path = inFolder('open')
    assert.is(
      ran.stderr,
      `${command}: error: ${path} can be used by others (mode 0644)\n${command}: hint: chmod 600 ${path}\n`,
    )
    assert.not(existsSync(inFolder('never')))
  }
  const ran = await run('restore-from-socket', ['--to-dir', inFolder('never'), ...key])
  assert.is(ran.code, 2)
  assert.match(ran.stderr, /^restore-from-socket: error: - is no TCP link: --tls and --key-file do nothing there\n/)
})

test('a plain cache and a client with a key or certificates: one line at each end', () =>
  withCache([], async (cache, port) => {
    await refused(cache, port, key, {
      client: 'PEER does not speak TLS',
      hint: 'start the cache with --key-file too',
      cache:
        /failed: the other end speaks TLS, and this one does not\ncache: hint: use --tls or --key-file at both ends/,
    })
    await proxyRefused(
      port,
      key,
      /failed: localhost:\d+ does not speak TLS\nproxy: hint: start the cache with --key-file too\n/,
    )
    if (ca === undefined) return
    await refused(cache, port, ca.options('proxy'), {
      client: 'PEER does not speak TLS',
      hint: 'start the cache with --tls too',
    })
  }))

/** Connects and says that, now or one byte every half second; resolves with the milliseconds until it was sent away. */
function rude(port: string, first: Uint8Array, more: boolean): Promise<number> {
  return new Promise((resolve) => {
    const begun = performance.now()
    const socket = net.connect(Number(port), '127.0.0.1').on('error', () => {})
    if (first.length > 0) socket.write(first)
    const timer = setInterval(() => more && socket.write(Buffer.alloc(1, 1)), 500)
    socket.resume().on('close', () => {
      clearInterval(timer)
      resolve(performance.now() - begun)
    })
  })
}

test('who says nothing, garbage or half a handshake is sent away within 10 s and holds nothing up', () =>
  withCache(key, async (cache, port) => {
    const half = Buffer.from('16030102000100', 'hex')
    const slow = [
      rude(port, half, true),
      rude(port, half, false),
      ...Array.from({ length: 20 }, () => rude(port, Buffer.alloc(0), false)),
    ]
    const silent = pull(port, [])
    const fast = [
      rude(port, randomBytes(1000).fill(0x7f, 0, 1), false),
      rude(port, Buffer.from('GET / HTTP/1.1\r\n\r\n'), false),
    ]
    await crosses(cache, port, key)
    const [garbage, silence] = [await within(Promise.all(fast)), await within(Promise.all(slow))]
    for (const ms of silence) assert.ok(ms > 8000, `a silent one stayed for ${ms} ms`)
    assert.ok(Math.max(...garbage) < Math.min(...silence), `garbage stayed for ${garbage} ms`)
    const plain = await silent
    assert.is(plain.code, 4)
    assert.match(
      plain.stderr,
      /nothing came\nrestore-from-socket: hint: the sender failed; or it is a cache that wants --tls or --key-file/,
    )
    await cache.says(/failed: no TLS handshake within 10 s/)
    await crosses(cache, port, key)
  }))

test('a server that never answers is left after 10 s', async () => {
  const mute = net.createServer(() => {}).listen(0, '127.0.0.1')
  await new Promise((resolve) => mute.once('listening', resolve))
  const port = String((mute.address() as net.AddressInfo).port)
  const pulled = await pull(port, key)
  assert.is(pulled.code, 3)
  assert.is(pulled.stderr, `restore-from-socket: error: localhost:${port}: no TLS handshake within 10 s\n`)
  mute.close()
})

if (ca !== undefined) {
  const tls = (name: string): string[] => ca.options(name)

  test('with certificates: a snapshot crosses', () =>
    withCache([...tls('cache'), '--tls-cacrl', ca.file('none.crl')], (cache, port) =>
      crosses(cache, port, tls('proxy')),
    ))

  test('with certificates: a client with an expired one, of nobody, for servers, none or a key is refused', () =>
    withCache(tls('cache'), async (cache, port) => {
      const clientOf = { client: 'PEER did not accept our certificate', hint: notAccepted }
      const says = (why: string): RegExp => new RegExp(`failed: (the last one: )?${why}\n`)
      const refusal = (why: string): RegExp => says(`the client's certificate is refused: ${why}`)
      await refused(cache, port, tls('expired'), { ...clientOf, cache: refusal('cert has expired') })
      await refused(cache, port, stranger, {
        ...clientOf,
        cache: refusal('unable to (verify leaf signature|get issuer cert locally)'),
      })
      await refused(cache, port, tls('for-servers'), { ...clientOf, cache: refusal('invalid purpose') })
      await refused(cache, port, key, {
        client: 'PEER does not have our key',
        hint: 'is it the same --key-file at both ends, and does the cache use one?',
        cache: says('the client left in the TLS handshake'),
      })
      await proxyRefused(
        port,
        tls('expired'),
        /failed: localhost:\d+ did not accept our certificate\nproxy: hint: expired, revoked/,
      )
      const bare = await run('openssl', [
        's_client',
        '-connect',
        `127.0.0.1:${port}`,
        '-quiet',
        '-CAfile',
        ca.file('ca.pem'),
      ])
      assert.is(bare.stdout.length, 0, 'not a byte without a certificate')
      await cache.says(says('the client has no certificate'))
      await crosses(cache, port, tls('for-clients'))
    }))

  test('with certificates: a cache with an expired one, of nobody, for clients, another name is refused', async () => {
    const caches: [name: string, options: string[], why: string, hint: string][] = [
      ['expired', tls('expired'), 'PEER has a certificate that is refused: cert has expired', ofCa],
      ['stranger', stranger, 'PEER has a certificate that is refused: unable to verify leaf signature', ofCa],
      ['for-clients', tls('for-clients'), 'PEER has a certificate that is refused: invalid purpose', ofCa],
      [
        'elsewhere',
        tls('elsewhere'),
        'PEER has a certificate for another name than localhost',
        'use the name that is in it as --address',
      ],
    ]
    for (const [, options, client, hint] of caches) {
      await withCache(options, (cache, port) => refused(cache, port, tls('proxy'), { client, hint }))
    }
  })

  test('--tls-no-cn-verify takes any name, but no other CA', async () => {
    await withCache(tls('elsewhere'), (cache, port) => crosses(cache, port, [...tls('proxy'), '--tls-no-cn-verify']))
    await withCache(stranger, (cache, port) =>
      refused(cache, port, [...tls('proxy'), '--tls-no-cn-verify'], {
        client: 'PEER has a certificate that is refused: unable to verify leaf signature',
        hint: ofCa,
      }),
    )
  })

  test('the name is the --address, not what it resolves to', () =>
    withCache(tls('cache'), (cache, port) =>
      refused(cache, port, tls('proxy'), {
        host: '127.0.0.1',
        client: 'PEER has a certificate for another name than 127.0.0.1',
        hint: 'use the name that is in it as --address',
      }),
    ))

  test('a certificate that is revoked meanwhile is refused from then on; others and snapshots stay', async () => {
    ca.revoke('now.crl')
    await withCache([...tls('cache'), '--tls-cacrl', ca.file('now.crl')], async (cache, port) => {
      await crosses(cache, port, tls('lost'))
      ca.revoke('now.crl', 'lost')
      await refused(cache, port, tls('lost'), {
        client: 'PEER did not accept our certificate',
        hint: notAccepted,
        cache: /failed: (the last one: )?the client's certificate is refused: cert revoked\n/,
      })
      assert.is((await pull(port, tls('proxy'), inFolder('kept'))).code, 0)
      writeFileSync(ca.file('now.crl'), 'gone')
      await refused(cache, port, tls('proxy'), {
        client: 'PEER closed the link in the TLS handshake',
        hint: log,
        cache: /failed: (the last one: )?\S+now.crl has no X509 CRL in it\n/,
      })
    })
    ca.revoke('now.crl')
    await withCache(tls('lost'), (cache, port) =>
      refused(cache, port, [...tls('proxy'), '--tls-cacrl', ca.file('now.crl')], {
        client: 'PEER has a certificate that is refused: cert revoked',
        hint: ofCa,
      }),
    )
  })

  test('a certificate that a client signed is nobody’s', async () => {
    const sign = signLine.replaceAll('ca.', 'proxy.').replaceAll('proxy.srl', 'p.srl')
    const made = await run('sh', ['-ec', `${requestLine}; ${sign}; cat proxy.pem >>$H.pem`], {
      cwd: ca.folder,
      env: { H: 'forged' },
    })
    assert.is(made.code, 0, made.stderr)
    await withCache(tls('cache'), (cache, port) =>
      refused(cache, port, tls('forged'), {
        client: 'PEER did not accept our certificate',
        hint: notAccepted,
        cache: /failed: (the last one: )?the client's certificate is refused: invalid (ca|purpose)\n/,
      }),
    )
  })

  test('docs/security.md makes its certificates with the lines that these tests use', () => {
    const document = readFileSync(join(root, 'docs/security.md'), 'utf8')
    for (const line of [authorityLine, requestLine, signLine]) assert.ok(document.includes(`    ${line}\n`), line)
  })
}

test.after(() => {
  ca?.remove()
  other?.remove()
  remove()
})

test.run()
