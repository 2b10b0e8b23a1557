import { randomBytes } from 'node:crypto'
import { chmodSync, chownSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Credentials } from '../../lib/credentials.ts'
import { check } from '../../lib/kernel/fd.ts'
import { mkfifo } from '../../lib/kernel/libc.ts'
import type { Link } from '../../lib/stream/link.ts'
import { secureClient, secureServer } from '../../lib/stream/tls.ts'
import { readSecrets } from '../../lib/stream/tls-secrets.ts'
import { reasonOf, rejectsFault, throwsFault, turns, within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { authority } from '../support/authority.ts'
import { run, temporary } from '../support/run.ts'

const test = suite('stream/tls')

const ca = authority()
const { path: folder, remove } = temporary()

function keyFile(name: string, bytes: Uint8Array, mode = 0o600): Credentials {
  const key = join(folder, name)
  writeFileSync(key, bytes)
  chmodSync(key, mode)
  return { kind: 'key', key }
}

const ours = keyFile('ours', randomBytes(32))
const never = new AbortController().signal

ca?.issue('cache')
ca?.issue('proxy', { host: 'source' })

function certificate(name: string): Extract<Credentials, { kind: 'tls' }> {
  const file = (ending: string): string => join(ca?.folder ?? '', `${name}.${ending}`)
  return {
    kind: 'tls',
    ca: join(ca?.folder ?? '', 'ca.pem'),
    cert: file('pem'),
    key: file('key'),
    crl: undefined,
    anyName: false,
  }
}

const kinds: [kind: string, near: Credentials, far: Credentials][] = [['a key', ours, ours]]
if (ca !== undefined) kinds.push(['certificates', certificate('proxy'), certificate('cache')])

interface Listening {
  port: number
  /** Each client as a link, or why it was disconnected. */
  next(): Promise<Link>
  close(): void
}

/** A server that admits clients as the cache does, and sends first. */
async function listening(credentials: Credentials, source = (_count: number): string => 'a'): Promise<Listening> {
  const admit = secureServer(credentials)
  const come: Promise<Link>[] = []
  let count = 0
  const waiting: ((link: Promise<Link>) => void)[] = []
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
    const link = admit(socket, 'client', source(count++)).then(async (made) => {
      await made.outlet.send(Buffer.from('hello'))
      return made
    })
    link.catch(() => {})
    const first = waiting.shift()
    if (first === undefined) come.push(link)
    else first(link)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    port: (server.address() as net.AddressInfo).port,
    next: () => within(come.shift() ?? new Promise<Link>((resolve) => waiting.push((link) => resolve(link)))),
    close: () => server.close(),
  }
}

async function connected(port: number): Promise<net.Socket> {
  const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  await new Promise((resolve) => socket.once('connect', resolve))
  return socket
}

async function client(port: number, credentials: Credentials, host = 'localhost'): Promise<Link> {
  return secureClient(await connected(port), host, 'cache', credentials, never)
}

async function hears(link: Link, text: string): Promise<void> {
  const got = Buffer.alloc(text.length)
  assert.ok(await within(link.inlet.fill(got)))
  assert.is(got.toString(), text)
}

for (const [kind, near, far] of kinds) {
  test(`${kind}: bytes both ways, the end of one direction and then of the other, no descriptor left`, async () => {
    const before = openFds()
    const server = await listening(far)
    const link = await within(client(server.port, near))
    const other = await server.next()
    assert.ok(link.duplex && other.duplex)
    await hears(link, 'hello')
    const large = randomBytes(5_000_000)
    const sending = link.outlet.send(large)
    const got = Buffer.alloc(large.length)
    assert.ok(await within(other.inlet.fill(got)))
    await within(sending)
    assert.ok(got.equals(large))
    await within(link.outlet.finish())
    assert.not(await within(other.inlet.fill(Buffer.alloc(1))), 'the end')
    await within(other.outlet.send(Buffer.from('reply')))
    await within(other.outlet.finish())
    await hears(link, 'reply')
    assert.not(await within(link.inlet.fill(Buffer.alloc(1))), 'the other end')
    link.destroy()
    other.destroy()
    server.close()
    for (let turn = 0; turn < 100 && openFds() > before; turn++) await new Promise((resolve) => setTimeout(resolve, 10))
    assert.ok(openFds() <= before, 'a descriptor is left')
  })

  test(`${kind}: TLS 1.3 with a fresh key exchange, and no way back without proof`, async () => {
    const server = await listening(far)
    const shake = async (extra: tls.ConnectionOptions): Promise<tls.TLSSocket> => {
      const socket = tls.connect({
        ...readSecrets(near).client,
        ...extra,
        socket: await connected(server.port),
        host: 'localhost',
      })
      await within(new Promise((resolve, reject) => socket.once('data', resolve).once('error', reject)))
      return socket
    }
    const socket = await shake({})
    assert.is(socket.getProtocol(), 'TLSv1.3')
    // Node.js 24 calls a group that is not of ECDH alone, X25519MLKEM768, by the second name.
    assert.match((socket.getEphemeralKeyInfo() as tls.EphemeralKeyInfo).type, /^(ECDH|TLSGroup)$/)
    assert.match(socket.getCipher().name, kind === 'a key' ? 'TLS_AES_128_GCM_SHA256' : 'TLS_AES_256_GCM_SHA384')
    const sessions: Buffer[] = []
    socket.on('session', (session) => sessions.push(session))
    socket.write('x')
    await new Promise((resolve) => setTimeout(resolve, 200))
    socket.destroy()
    if (kind !== 'a key') {
      for (const session of sessions) {
        const again = await shake({ session })
        assert.not(again.isSessionReused(), 'an old session is not taken instead of a certificate')
        again.destroy()
      }
      const reason = await reasonOf(shake({ minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' }))
      assert.is((reason as NodeJS.ErrnoException).code, 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION')
    }
    server.close()
  })

  test(`${kind}: a byte that was changed on the way is LINK`, async () => {
    const server = await listening(far)
    let spoil = false
    const between = net.createServer((socket) => {
      const onward = net.connect(server.port, '127.0.0.1')
      for (const end of [socket, onward]) end.on('error', () => {})
      socket.pipe(onward)
      onward.on('data', (chunk) => {
        if (spoil) chunk[chunk.length - 1] = (chunk.at(-1) as number) ^ 1
        socket.write(chunk)
      })
    })
    await new Promise<void>((resolve) => between.listen(0, '127.0.0.1', resolve))
    const link = await within(client((between.address() as net.AddressInfo).port, near))
    const other = await server.next()
    await hears(link, 'hello')
    spoil = true
    await other.outlet.send(Buffer.from('spoilt'))
    const fault = await rejectsFault('LINK', link.inlet.fill(Buffer.alloc(6)))
    assert.match(fault.message, 'TLS: the link was changed or cut (ERR_SSL_')
    link.destroy()
    other.destroy()
    between.close()
    server.close()
  })

  test(`${kind}: a signal ends a handshake with its reason`, async () => {
    const mute = net.createServer(() => {}).listen(0, '127.0.0.1')
    await new Promise((resolve) => mute.once('listening', resolve))
    const socket = await connected((mute.address() as net.AddressInfo).port)
    const stop = new AbortController()
    const shaking = secureClient(socket, 'localhost', 'cache', near, stop.signal)
    const reason = new Error('stopped')
    stop.abort(reason)
    assert.is(await reasonOf(shaking), reason)
    assert.ok(socket.destroyed)
    mute.close()
  })
}

test('a key is never replaced by a certificate, whoever signed it', async () => {
  if (ca === undefined) return
  const { key, cert } = { key: readFileSync(ca.file('cache.key')), cert: readFileSync(ca.file('cache.pem')) }
  const server = tls.createServer({ key, cert }, (socket) => socket.on('error', () => {}).write('hello'))
  server.on('tlsClientError', () => {})
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const fault = await rejectsFault('LINK', client((server.address() as net.AddressInfo).port, ours))
  assert.is(fault.message, 'cache does not have our key')
  server.close()
})

test('another TLS library is admitted with the key, and not without it or with another', async () => {
  if (ca === undefined) return
  const server = await listening(ours)
  const hex = readFileSync(join(folder, 'ours')).toString('hex')
  const line = ['s_client', '-connect', `127.0.0.1:${server.port}`, '-tls1_3', '-quiet', '-psk_identity', 'criu-ferry']
  const suites = ['-ciphersuites', 'TLS_AES_128_GCM_SHA256']
  const good = run('openssl', [...line, ...suites, '-psk', hex])
  const link = await server.next()
  link.destroy()
  assert.is((await good).stdout.toString(), 'hello')
  for (const wrong of [['-psk', 'ab'.repeat(32)], [], ['-psk', hex, '-psk_identity', 'other']]) {
    const bad = run('openssl', [...line, ...suites, ...wrong])
    const fault = await rejectsFault('LINK', server.next(), wrong.join(' '))
    assert.match(fault.message, /^the client has (no|another) key$/)
    assert.is((await bad).stdout.length, 0)
  }
  server.close()
})

/** The greeting of a client that has our key. */
async function greetingOf(credentials: Credentials): Promise<Buffer> {
  const server = net.createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const first = new Promise<Buffer>((resolve) => {
    server.on('connection', (socket) => socket.once('data', (bytes: Buffer) => resolve(bytes)))
  })
  const { port } = server.address() as net.AddressInfo
  const socket = tls.connect({ ...readSecrets(credentials).client, port, host: '127.0.0.1' }).on('error', () => {})
  const bytes = await within(first)
  socket.destroy()
  server.close()
  return bytes
}

/** As many clients that send this and no more. */
async function stalling(server: Listening, count: number, bytes: Uint8Array) {
  const sockets: net.Socket[] = []
  const outcomes: Promise<Link>[] = []
  for (let made = 0; made < count; made++) {
    const socket = await connected(server.port)
    if (bytes.length > 0) socket.write(bytes)
    sockets.push(socket)
    const outcome = server.next()
    outcome.catch(() => {})
    outcomes.push(outcome)
  }
  return { sockets, outcomes }
}

test('clients that stall before their greeting is whole take no place; a greeting may come byte by byte', async () => {
  const before = openFds()
  const server = await listening(ours)
  const greeting = await greetingOf(ours)
  const half = await stalling(server, 60, greeting.subarray(0, 6))
  const silent = await stalling(server, 60, Buffer.alloc(0))
  const dripping = await connected(server.port)
  const dripped = server.next()
  dripped.catch(() => {})
  for (const byte of greeting) await new Promise((done) => dripping.write(Buffer.of(byte), done))
  const link = await within(client(server.port, ours))
  const other = await server.next()
  await hears(link, 'hello')
  assert.ok((await within(new Promise<Buffer>((resolve) => dripping.once('data', resolve)))).length > 0, 'an answer')
  for (const end of [link, other]) end.destroy()
  for (const socket of [...half.sockets, ...silent.sockets, dripping]) socket.destroy()
  for (const outcome of [...half.outcomes, ...silent.outcomes, dripped]) {
    assert.is((await rejectsFault('LINK', outcome)).message, 'the client left in the TLS handshake')
  }
  server.close()
  await turns()
  assert.is(openFds(), before)
})

test('when too many clients stall after their greeting, the oldest are disconnected', async () => {
  const server = await listening(ours)
  const { sockets, outcomes } = await stalling(server, 70, await greetingOf(ours))
  const link = await within(client(server.port, ours))
  const other = await server.next()
  for (const outcome of outcomes.slice(0, 7)) {
    assert.is((await rejectsFault('LINK', outcome)).message, 'too many handshakes at a time')
  }
  await hears(link, 'hello')
  for (const end of [link, other]) end.destroy()
  for (const socket of sockets) socket.destroy()
  for (const outcome of outcomes.slice(7)) {
    assert.is((await rejectsFault('LINK', outcome)).message, 'the client left in the TLS handshake')
  }
  server.close()
})

test('a peer that has one handshake under way keeps it, however many another peer begins', async () => {
  const server = await listening(ours, (count) => (count === 0 ? 'honest' : 'hostile'))
  const greeting = await greetingOf(ours)
  const slow = await stalling(server, 1, greeting)
  const { sockets, outcomes } = await stalling(server, 70, greeting)
  for (const outcome of outcomes.slice(0, 7)) {
    assert.is((await rejectsFault('LINK', outcome)).message, 'too many handshakes at a time')
  }
  for (const socket of [...slow.sockets, ...sockets]) socket.destroy()
  for (const outcome of [...slow.outcomes, ...outcomes.slice(7)]) {
    assert.is((await rejectsFault('LINK', outcome)).message, 'the client left in the TLS handshake')
  }
  server.close()
})

test('a key file is 32 to 256 random bytes that nobody else can read', () => {
  for (const bytes of [32, 33, 256]) readSecrets(keyFile('good', randomBytes(bytes)))
  readSecrets(keyFile('good', randomBytes(32), 0o400))
  const path = join(folder, 'bad')
  for (const bytes of [
    Buffer.alloc(0),
    randomBytes(31),
    randomBytes(257),
    Buffer.alloc(32),
    Buffer.alloc(64, 'secret'),
  ]) {
    const { message, hint } = throwsFault('USAGE', () => readSecrets(keyFile('bad', bytes)), `${bytes.length} bytes`)
    assert.is(message, `${path} is no key: 32 to 256 random bytes are wanted`)
    assert.is(hint, `head -c 32 /dev/urandom > ${path}`)
  }
  for (const [mode, text] of [
    [0o640, '0640'],
    [0o604, '0604'],
    [0o620, '0620'],
    [0o601, '0601'],
    [0o666, '0666'],
  ] as const) {
    const { message, hint } = throwsFault('USAGE', () => readSecrets(keyFile('bad', randomBytes(32), mode)), text)
    assert.is(message, `${path} can be used by others (mode ${text})`)
    assert.is(hint, `chmod 600 ${path}`)
  }
  assert.is(
    throwsFault('USAGE', () => readSecrets({ kind: 'key', key: '/nowhere' })).message,
    'cannot read /nowhere (ENOENT)',
  )
  assert.is(throwsFault('USAGE', () => readSecrets({ kind: 'key', key: folder })).message, `${folder} is no file`)
})

test('a key file of another user is refused', () => {
  if (process.geteuid?.() !== 0) return void console.log('skipped: giving a file away needs root')
  const credentials = keyFile('given', randomBytes(32))
  chownSync(join(folder, 'given'), 1000, 0)
  assert.is(
    throwsFault('USAGE', () => readSecrets(credentials)).message,
    `${join(folder, 'given')} belongs to another user (1000)`,
  )
})

test('a FIFO in the place of any of the files is refused, and not waited for', () => {
  if (ca === undefined) return
  const good = certificate('cache')
  const fifo = join(folder, 'fifo')
  check(mkfifo(fifo, 0o600), 'mkfifo')
  for (const at of ['ca', 'cert', 'key', 'crl'] as const) {
    assert.is(throwsFault('USAGE', () => readSecrets({ ...good, [at]: fifo }), at).message, `${fifo} is no file`)
  }
  throwsFault('USAGE', () => readSecrets({ kind: 'key', key: fifo }))
  const link = join(folder, 'link')
  symlinkSync(good.cert, link)
  readSecrets({ ...good, cert: link })
})

test('certificate files that cannot be used are USAGE, with their names', () => {
  if (ca === undefined) return
  const good = certificate('cache')
  const text = join(folder, 'text')
  writeFileSync(text, 'no certificate')
  chmodSync(text, 0o600)
  const readable = join(folder, 'readable')
  writeFileSync(readable, readFileSync(good.key))
  chmodSync(readable, 0o644)
  const wrong: [change: Partial<typeof good>, message: string][] = [
    [{ ca: '/nowhere' }, 'cannot read /nowhere (ENOENT)'],
    [{ ca: text }, `${text} has no CERTIFICATE in it`],
    [{ cert: good.key }, `${good.key} has no CERTIFICATE in it`],
    [{ crl: good.cert }, `${good.cert} has no X509 CRL in it`],
    [{ crl: '/nowhere' }, 'cannot read /nowhere (ENOENT)'],
    [{ key: readable }, `${readable} can be used by others (mode 0644)`],
    [{ key: text }, `${good.cert} and ${text} cannot be used together (ERR_OSSL_UNSUPPORTED)`],
    [
      { key: certificate('proxy').key },
      `${good.cert} and ${certificate('proxy').key} cannot be used together (ERR_OSSL_X509_KEY_VALUES_MISMATCH)`,
    ],
  ]
  for (const [change, message] of wrong) {
    assert.is(throwsFault('USAGE', () => readSecrets({ ...good, ...change }), message).message, message)
  }
})

test.after(() => {
  ca?.remove()
  remove()
})

test.run()
