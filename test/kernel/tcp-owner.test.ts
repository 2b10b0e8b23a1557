import { once } from 'node:events'
import net from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isLoopback, ownerByProc, ownerBySockDiag, ownerOf } from '../../lib/kernel/tcp-owner.ts'

const test = suite('kernel/tcp-owner')

/** A connection to `to`, where a server listens on `on`, as the server sees it. */
async function connected(on: string, to: string) {
  const server = net.createServer({ allowHalfOpen: true })
  server.listen(0, on)
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  const client = net.connect({ port, host: to, allowHalfOpen: true })
  const [socket] = (await once(server, 'connection')) as [net.Socket]
  const { remoteAddress = '', remotePort = 0, localAddress = '', localPort = 0 } = socket
  const ends = {
    theirs: { address: remoteAddress, port: remotePort },
    ours: { address: localAddress, port: localPort },
  }
  const close = async (): Promise<void> => {
    client.destroy()
    socket.destroy()
    server.close()
    await once(server, 'close')
  }
  return { ends, client, socket, close }
}

test('where the kernel finds nobody at all /proc is asked: the part that knows of TCP may not be there', async () => {
  const { ends, close } = await connected('127.0.0.1', '127.0.0.1')
  assert.is(ownerOf(ends, () => 'none')?.uid, process.getuid?.())
  assert.ok(ownerOf(ends))
  if (ownerBySockDiag(ends) !== undefined)
    assert.is(
      ownerOf(ends, () => 'none'),
      undefined,
    )
  await close()
})

for (const [on, to] of [
  ['127.0.0.1', '127.0.0.1'],
  ['::1', '::1'],
  ['::', '127.0.0.1'],
  ['::ffff:127.0.0.1', '127.0.0.1'],
] as const) {
  test(`the user at the other end of a connection to ${to}, where ${on} is listened on, in both ways`, async () => {
    const { ends, close } = await connected(on, to)
    try {
      const owner = ownerOf(ends)
      assert.is(owner?.uid, process.getuid?.())
      assert.ok((owner?.inode ?? 0) > 0)
      assert.equal(ownerByProc(ends), owner)
      const diag = ownerBySockDiag(ends)
      if (diag === undefined) console.log('skipped: this kernel has no sock_diag')
      else assert.equal(diag, owner)
      const nobody = { ...ends, theirs: { ...ends.theirs, port: 1 } }
      assert.is(ownerOf(nobody), undefined)
      assert.is(ownerByProc(nobody), 'none')
    } finally {
      await close()
    }
  })
}

test('a listener on the port of the other end is not the other end', async () => {
  const { ends, close } = await connected('127.0.0.1', '127.0.0.1')
  const listener = net.createServer()
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const { port } = listener.address() as net.AddressInfo
  assert.is(ownerOf({ ...ends, theirs: { address: '127.0.0.1', port } }), undefined)
  listener.close()
  await close()
})

test('a client that has closed its end is nobody, one that only says no more is somebody', async () => {
  const { ends, client, socket, close } = await connected('127.0.0.1', '127.0.0.1')
  socket.resume()
  client.end()
  await once(socket, 'end')
  assert.is(ownerOf(ends)?.uid, process.getuid?.())
  client.destroy()
  await once(client, 'close')
  assert.is(ownerOf(ends), undefined)
  assert.is(ownerByProc(ends), 'none')
  assert.is(ownerBySockDiag(ends) ?? 'none', 'none')
  await close()
})

test('which addresses are of this host alone', () => {
  for (const address of ['127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1', '::FFFF:127.0.0.2']) {
    assert.ok(isLoopback(address), address)
  }
  for (const address of ['10.0.0.1', '::', '::2', '::ffff:10.0.0.1', 'fe80::1', '1.127.0.0']) {
    assert.not(isLoopback(address), address)
  }
})

test.run()
