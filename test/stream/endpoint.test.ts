import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { makePipe } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { acceptUnix, listenUnix } from '../../lib/kernel/unix.ts'
import {
  checkNetwork,
  connectEndpoint,
  type Endpoint,
  formatEndpoint,
  linkOverSocket,
  parseEndpoint,
  refuseOpenNetwork,
} from '../../lib/stream/endpoint.ts'
import type { Link } from '../../lib/stream/link.ts'
import { reasonOf, rejectsFault, throwsFault, turns, within } from '../expect.ts'
import { openFds, strangeFds } from '../kernel/fds.ts'
import { root, shell, temporary } from '../support/run.ts'

const test = suite<{ dir: string; remove: () => void }>('stream/endpoint')

test.before.each((context) => {
  const { path, remove } = temporary()
  context.dir = path
  context.remove = remove
})
test.after.each((context) => context.remove())

const never = new AbortController().signal
const LONG = 30_000

test('endpoints are read and written', () => {
  const endpoints: [text: string, endpoint: Endpoint, back: string][] = [
    ['host:9997', { kind: 'tcp', host: 'host', port: 9997 }, 'host:9997'],
    ['tcp:host:1', { kind: 'tcp', host: 'host', port: 1 }, 'host:1'],
    ['127.0.0.1:65535', { kind: 'tcp', host: '127.0.0.1', port: 65535 }, '127.0.0.1:65535'],
    ['[::1]:80', { kind: 'tcp', host: '::1', port: 80 }, '[::1]:80'],
    ['tcp:[fe80::1%2]:80', { kind: 'tcp', host: 'fe80::1%2', port: 80 }, '[fe80::1%2]:80'],
    ['unix:/run/x.sock', { kind: 'unix', path: '/run/x.sock' }, 'unix:/run/x.sock'],
    ['unix:a:1', { kind: 'unix', path: 'a:1' }, 'unix:a:1'],
    ['fd:3', { kind: 'fd', fd: 3 }, 'fd:3'],
    ['-', { kind: 'stdio' }, 'stdin'],
  ]
  for (const [text, endpoint, back] of endpoints) {
    assert.equal(parseEndpoint(text), endpoint, text)
    assert.is(formatEndpoint(endpoint), back)
  }
})

/** A listener that resets every connection before its owner can be looked up. */
const resetter = `
const server = require('node:net').createServer((client) => client.resetAndDestroy())
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
setTimeout(() => process.exit(), 60000)
`

/** Blocks this process for a while: it sees only later what the kernel does meanwhile. */
function sleep(): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200)
}

for (const when of ['before Node reports it', 'before its owner is looked up'] as const) {
  test(`a connection that is reset ${when} is tried again, and is LINK in the end`, async () => {
    const child = spawn(process.execPath, ['-e', resetter], { stdio: ['ignore', 'pipe', 'inherit'] })
    let tries = 0
    const made = (message: unknown): void => {
      tries++
      const { socket } = message as { socket: net.Socket }
      if (when === 'before its owner is looked up') socket.once('connect', sleep)
      // The first of the two is Node's, which connects.
      else process.nextTick(() => process.nextTick(sleep))
    }
    try {
      const [port] = (await within(once(child.stdout, 'data'))) as [Buffer]
      const endpoint = { kind: 'tcp', host: '127.0.0.1', port: Number(port), uids: [] } as const
      subscribe('net.client.socket', made)
      const fault = await rejectsFault('LINK', connectEndpoint(endpoint, 1000, never))
      assert.match(fault.message, /cannot connect to 127\.0\.0\.1:\d+ \((ECONNRESET|ENOTCONN)\)/)
      assert.ok(tries > 1, `${tries} tries`)
    } finally {
      unsubscribe('net.client.socket', made)
      const closed = once(child, 'close')
      child.kill()
      await within(closed)
    }
  })
}

test('a listener that accepts only after seconds is waited for, until the time-out', async () => {
  const program = "const server = require('node:net').createServer(() => {})\n"
  const told = "server.listen(0, '127.0.0.1', () => console.log(server.address().port))"
  const child = spawn(process.execPath, ['-e', program + told], { stdio: ['ignore', 'pipe', 'inherit'] })
  const closed = once(child, 'close')
  try {
    const [port] = (await within(once(child.stdout, 'data'))) as [Buffer]
    const endpoint = { kind: 'tcp', host: '127.0.0.1', port: Number(port), uids: [] } as const
    child.kill('SIGSTOP')
    const connecting = connectEndpoint(endpoint, LONG, never)
    const fault = await rejectsFault('LINK', connectEndpoint(endpoint, 2000, never))
    assert.match(fault.message, `cannot connect to 127.0.0.1:${endpoint.port} (it does not accept)`)
    // The first connection is given up before.
    await setTimeout(11_000)
    child.kill('SIGCONT')
    ;(await within(connecting)).destroy()
  } finally {
    child.kill('SIGKILL')
    await within(closed)
  }
})

/** A listener that ends every connection in order before its owner can be looked up, and one later that does not. */
const closer = `
const server = require('node:net').createServer({ allowHalfOpen: true }, (client) => client.end().destroy())
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
setTimeout(() => process.exit(), 60000)
`

test('a listener that closes each connection at once does not accept it, and another try is made soon', async () => {
  const child = spawn(process.execPath, ['-e', closer], { stdio: ['ignore', 'pipe', 'inherit'] })
  const closed = once(child, 'close')
  let tries = 0
  const made = (message: unknown): void => {
    tries++
    // Until the other end has closed.
    ;(message as { socket: net.Socket }).socket.once('connect', sleep)
  }
  try {
    const [port] = (await within(once(child.stdout, 'data'))) as [Buffer]
    subscribe('net.client.socket', made)
    const endpoint = { kind: 'tcp', host: '127.0.0.1', port: Number(port), uids: [] } as const
    const fault = await rejectsFault('LINK', connectEndpoint(endpoint, 3000, never))
    assert.match(fault.message, 'ENOTCONN')
    assert.ok(tries > 2, `${tries} tries`)
  } finally {
    unsubscribe('net.client.socket', made)
    child.kill()
    await within(closed)
  }
})

test('what is no endpoint is USAGE', () => {
  const hosts = [
    '',
    'host',
    'host:',
    ':80',
    'host:0',
    'host:65536',
    'host:123456',
    'host:-1',
    'host:8o',
    'a b:80',
    '::1:80',
  ]
  const others = [
    '[::1]',
    '[::1:80',
    'tcp:',
    'tcp:80',
    'unix:',
    'fd:',
    'fd:x',
    'fd:-1',
    'fd:12345678',
    'http://x:80',
    'h:80\n',
  ]
  for (const text of [...hosts, ...others]) throwsFault('USAGE', () => parseEndpoint(text), JSON.stringify(text))
})

test('plain TCP is refused unless it stays on this host', async () => {
  for (const host of ['localhost', '127.0.0.1', '127.1.2.3', '::1']) await within(refuseOpenNetwork(host))
  for (const host of ['0.0.0.0', '::', '192.0.2.1', '128.0.0.1', '']) {
    await rejectsFault('USAGE', refuseOpenNetwork(host), host)
  }
})

test('credentials are for TCP, and allow it to other hosts', async ({ dir }) => {
  const key = join(dir, 'key')
  writeFileSync(key, randomBytes(32), { mode: 0o600 })
  const credentials = { kind: 'key', key } as const
  assert.equal(parseEndpoint('host:1', credentials), { kind: 'tcp', host: 'host', port: 1, credentials })
  for (const text of ['-', 'fd:3', 'unix:/run/x.sock'])
    throwsFault('USAGE', () => parseEndpoint(text, credentials), text)
  await within(checkNetwork('192.0.2.1', credentials, false))
  await within(checkNetwork('192.0.2.1', undefined, true))
  await within(checkNetwork('127.0.0.1', undefined, false))
  await rejectsFault('USAGE', checkNetwork('192.0.2.1', undefined, false))
  await rejectsFault('USAGE', checkNetwork('127.0.0.1', { kind: 'key', key: join(dir, 'no') }, false))
})

/** Sends bytes both ways, ends one direction, and then the other. */
async function talk(near: Link, far: Link): Promise<void> {
  assert.ok(near.duplex)
  const got = Buffer.alloc(5)
  await within(near.outlet.send(Buffer.from('he'), true))
  await within(near.outlet.send(Buffer.from('llo')))
  assert.ok(await within(far.inlet.fill(got)))
  assert.is(got.toString(), 'hello')
  await within(near.outlet.finish())
  assert.not(await within(far.inlet.fill(got)), 'the end')
  await within(far.outlet.send(Buffer.from('reply')))
  assert.ok(await within(near.inlet.fill(got)))
  assert.is(got.toString(), 'reply')
  near.destroy()
  far.destroy()
}

function listen(options: net.ListenOptions): Promise<{ server: net.Server; accepted: Promise<net.Socket> }> {
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true })
  const accepted = new Promise<net.Socket>((resolve) => server.once('connection', resolve))
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(options, () => resolve({ server, accepted }))
  })
}

test('TCP: the descriptors of both ends are taken over, and carry bytes both ways', async () => {
  const before = openFds()
  const { server, accepted } = await listen({ port: 0, host: '127.0.0.1' })
  const { port } = server.address() as net.AddressInfo
  const near = await within(connectEndpoint({ kind: 'tcp', host: '127.0.0.1', port }, 0, never))
  assert.is(near.peer, `127.0.0.1:${port}`)
  await talk(near, linkOverSocket(await accepted, 'client'))
  server.close()
  await turns()
  assert.is(openFds(), before, 'a descriptor is left')
})

test('a UNIX socket carries bytes both ways', async ({ dir }) => {
  const { server, accepted } = await listen({ path: join(dir, 's.sock') })
  const near = await within(connectEndpoint({ kind: 'unix', path: join(dir, 's.sock') }, 0, never))
  await talk(near, linkOverSocket(await accepted, 'client'))
  server.close()
})

test('bytes that came before the take-over are not lost', async () => {
  const { server, accepted } = await listen({ port: 0, host: '127.0.0.1' })
  const client = net.connect((server.address() as net.AddressInfo).port)
  client.write('early')
  const socket = await within(accepted)
  await turns()
  const link = linkOverSocket(socket, 'client')
  const got = Buffer.alloc(5)
  assert.ok(await within(link.inlet.fill(got)))
  assert.is(got.toString(), 'early')
  link.destroy()
  client.destroy()
  server.close()
})

test('a server may send first', async () => {
  const server = net.createServer((socket) => socket.end('hello')).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as net.AddressInfo
  for (let round = 0; round < 20; round++) {
    const link = await within(connectEndpoint({ kind: 'tcp', host: '127.0.0.1', port }, 0, never))
    const got = Buffer.alloc(5)
    assert.ok(await within(link.inlet.fill(got)))
    assert.is(got.toString(), 'hello')
    assert.not(await within(link.inlet.fill(got)))
    link.destroy()
  }
  server.close()
})

test('a stream that ends in the middle is TRUNCATED, a closed link gives its reason', async () => {
  const { server, accepted } = await listen({ port: 0, host: '127.0.0.1' })
  const client = net.connect((server.address() as net.AddressInfo).port)
  const link = linkOverSocket(await within(accepted), 'client')
  client.end('abc')
  await rejectsFault('TRUNCATED', link.inlet.fill(Buffer.alloc(5)))
  const reason = new Error('enough')
  link.destroy(reason)
  link.destroy(new Error('twice'))
  assert.instance(await reasonOf(link.outlet.send(Buffer.from('x'))), Error)
  assert.instance(
    await reasonOf(link.inlet.fill(Buffer.alloc(1)).then((there) => there || Promise.reject(reason))),
    Error,
  )
  client.destroy()
  server.close()
})

test('no listener is LINK at once, or after the time-out', async ({ dir }) => {
  const { server } = await listen({ port: 0, host: '127.0.0.1' })
  const { port } = server.address() as net.AddressInfo
  await new Promise((resolve) => server.close(resolve))
  const fault = await rejectsFault('LINK', connectEndpoint({ kind: 'tcp', host: '127.0.0.1', port }, 0, never))
  assert.match(fault.message, `127.0.0.1:${port} (ECONNREFUSED)`)
  await rejectsFault('LINK', connectEndpoint({ kind: 'unix', path: join(dir, 'no.sock') }, 250, never))
  writeFileSync(join(dir, 'file'), '')
  await rejectsFault(
    'LINK',
    connectEndpoint({ kind: 'unix', path: join(dir, 'file', 'x') }, LONG, never),
    'ENOTDIR does not mend',
  )
})

test('a listener that comes later is waited for', async ({ dir }) => {
  const path = join(dir, 'late.sock')
  const connecting = connectEndpoint({ kind: 'unix', path }, LONG, never)
  await turns()
  const listener = listenUnix(path)
  closeFd(await within(acceptUnix(listener)))
  const link = await within(connecting)
  assert.not(await within(link.inlet.fill(Buffer.alloc(1))))
  link.destroy()
  closeFd(listener)
})

test('a signal ends the tries with its reason', async ({ dir }) => {
  const stop = new AbortController()
  const reason = new Error('stopped')
  const connecting = connectEndpoint({ kind: 'unix', path: join(dir, 'no.sock') }, LONG, stop.signal)
  await turns()
  stop.abort(reason)
  assert.is(await reasonOf(connecting), reason)
})

test('a signal ends a connection that is being made, and one that is aborted before, with its reason', async () => {
  const { server } = await listen({ port: 0, host: '127.0.0.1' })
  const endpoint = { kind: 'tcp', host: '127.0.0.1', port: (server.address() as net.AddressInfo).port } as const
  const stop = new AbortController()
  const reason = new Error('stopped')
  const connecting = connectEndpoint(endpoint, LONG, stop.signal)
  stop.abort(reason)
  assert.is(await reasonOf(connecting), reason)
  assert.is(await reasonOf(connectEndpoint(endpoint, LONG, stop.signal)), reason)
  server.close()
})

test('an inherited descriptor is read to its end', async ({ dir }) => {
  writeFileSync(join(dir, 'file'), 'hello')
  const fd = openSync(join(dir, 'file'), 'r')
  const link = await within(connectEndpoint({ kind: 'fd', fd }, 0, never))
  const got = Buffer.alloc(5)
  assert.not(link.duplex)
  assert.is(link.peer, `fd:${fd}`)
  assert.ok(await within(link.inlet.fill(got)))
  assert.is(got.toString(), 'hello')
  assert.not(await within(link.inlet.fill(got)))
  link.destroy()
  if (process.env.FERRY_NO_SPLICE !== '1') closeSync(fd)
})

test('a descriptor that is not open is USAGE', async () => {
  await rejectsFault('USAGE', connectEndpoint({ kind: 'fd', fd: 999_999 }, 0, never))
})

test('a descriptor that cannot be read is USAGE, also the write end of a pipe', async () => {
  const others = strangeFds()
  const [out, into] = makePipe()
  const { 'a file by name': name, 'a file to write': file, 'a file for neither': neither } = others.fds
  for (const fd of [into, name, file, neither]) {
    const { message } = await rejectsFault('USAGE', connectEndpoint({ kind: 'fd', fd }, 0, never))
    assert.is(message, `fd ${fd} is not open to read`)
  }
  for (const fd of [out, into]) closeFd(fd)
  others.close()
})

// Standard input and output belong to the process: these tests run in a child.

const program = `
  import { connectEndpoint, stdoutLink } from './lib/stream/endpoint.ts'
  try {
    const [input, output] = [await connectEndpoint({ kind: 'stdio' }, 0, AbortSignal.abort()), stdoutLink()]
    for (const byte = Buffer.alloc(1); await input.inlet.fill(byte); ) await output.outlet.send(byte)
    await output.outlet.finish()
    output.destroy()
    input.destroy()
  } catch (error) {
    console.error(error.code, error.message)
    process.exit(9)
  }
  process.exit(0)
`

/** Runs a line of shell in which the program is called `copy`. */
function child(line: string, input = ''): ReturnType<typeof shell> {
  const copy = 'copy() { node --import tsx --input-type=module -e "$PROGRAM"; }'
  return shell(`${copy}; ${line}`, { cwd: root, env: { PROGRAM: program }, input: Buffer.from(input) })
}

test('stdin and stdout: sockets, pipes and files', async ({ dir }) => {
  const socket = await child('copy', 'hello')
  assert.equal([socket.code, socket.stdout.toString(), socket.stderr], [0, 'hello', ''])
  const pipe = await child('cat | copy | cat', 'hello')
  assert.equal([pipe.code, pipe.stdout.toString(), pipe.stderr], [0, 'hello', ''])
  const file = await child(`copy >${dir}/out <${import.meta.filename}`)
  assert.equal([file.code, file.stderr], [0, ''])
  assert.equal(readFileSync(join(dir, 'out')), readFileSync(import.meta.filename))
})

test('stdin that cannot be read and stdout that cannot be written are USAGE, whatever they are', async ({ dir }) => {
  for (const [what, line] of [
    ['stdin', `copy 0>${dir}/out`],
    ['stdin', `{ copy 0>&3 | cat; } 3>&1 >&2 | cat >/dev/null`],
    ['stdout', `copy 1</dev/null`],
    ['stdout', `cat </dev/null | { copy 1<&0 0</dev/null; }`],
  ] as const) {
    const { code, stderr } = await child(line)
    const [fd, direction] = what === 'stdin' ? [0, 'read'] : [1, 'write']
    assert.match(stderr, `USAGE fd ${fd} is not open to ${direction}`, line)
    assert.is(code, 9, line)
  }
})

test('a reader of stdout that left is LINK', async () => {
  const { code, stderr } = await child('yes | copy | head -c 1 >/dev/null')
  assert.is(code, 9)
  assert.match(stderr, /^LINK /)
})

test.run()
