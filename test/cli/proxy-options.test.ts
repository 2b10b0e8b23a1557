import { parseArgs } from 'node:util'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { proxyOptions, readProxyOptions } from '../../lib/cli/proxy-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/proxy-options')

function proxy(line: string, criuOptions: string[] = []) {
  const args = ['-D', 'x', '--port', '9997', ...line.split(' ').filter((word) => word !== '')]
  return readProxyOptions(parseArgs({ args, options: proxyOptions }).values, criuOptions)
}

test('our wire has no limit of memory at the proxy', () => {
  assert.is(proxy('--compress zstd').remote, undefined)
  throwsFault('USAGE', () => proxy('--wire ferry --max-memory 1G'))
  throwsFault('USAGE', () => proxy('--wire criu'))
})

test('that of criu --remote has one, and ids that are any text', () => {
  assert.is(proxy('--wire criu-remote --max-memory 1G').remote?.maxMemory, 2 ** 30)
  assert.ok((proxy('--wire criu-remote').remote?.maxMemory ?? 0) > 2 ** 20)
  const { id, remote } = proxy('--wire criu-remote --snapshot ../a')
  assert.equal([id, remote?.snapshot], [undefined, '../a'])
  throwsFault('USAGE', () => proxy('--snapshot ../a'))
})

test('what the wire of criu --remote cannot do is refused by name', () => {
  for (const odd of [
    '--connections 2',
    '--page-server-port 0',
    '--until running',
    '--compress zstd',
    '--rate-limit 1M',
    '--no-checksum',
    '--tls --tls-cacert a --tls-cert b --tls-key c',
    '--key-file key',
  ]) {
    const { message } = throwsFault('USAGE', () => proxy(`--wire criu-remote ${odd}`))
    assert.ok(message.startsWith(`--wire criu-remote and ${odd.split(' ')[0]}`), message)
  }
})

test('a cache is at a port, or at a socket that was handed over', () => {
  assert.equal(proxy('').cache, { kind: 'tcp', host: '127.0.0.1', port: 9997, credentials: undefined, uids: [] })
  assert.match(throwsFault('USAGE', () => proxy('--ps-socket 3')).message, '--ps-socket and --port')
})

test('what follows -- is refused: a proxy starts no criu', () => {
  assert.match(throwsFault('USAGE', () => proxy('', ['-R'])).message, 'criu options')
})

test.run()
