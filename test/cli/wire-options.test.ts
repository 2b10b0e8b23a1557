import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isRemoteCache, remoteProxyOf } from '../../lib/cli/wire-options.ts'
import { throwsFault } from '../expect.ts'

const test = suite('cli/wire-options')

const proxy = { wire: 'criu-remote', tls: false, until: 'sealed', compress: 'none', 'no-checksum': false }
const cache = { wire: 'criu-remote', tls: false, restore: false, keep: false, 'release-early': false }

test('ours needs nothing of it, and has no limit of memory at the proxy', () => {
  assert.is(remoteProxyOf({ ...proxy, wire: 'ferry', compress: 'zstd' }), undefined)
  assert.is(isRemoteCache({ ...cache, wire: 'ferry', keep: true }), false)
  throwsFault('USAGE', () => remoteProxyOf({ ...proxy, wire: 'ferry', 'max-memory': '1G' }))
  throwsFault('USAGE', () => remoteProxyOf({ ...proxy, wire: 'criu' }))
})

test('that of criu --remote has a limit of memory', () => {
  assert.is(remoteProxyOf({ ...proxy, 'max-memory': '1G' })?.maxMemory, 2 ** 30)
  assert.ok((remoteProxyOf(proxy)?.maxMemory ?? 0) > 2 ** 20)
  assert.is(isRemoteCache(cache), true)
})

test('what it cannot do is refused by name', () => {
  for (const odd of [
    { connections: '2' },
    { 'page-server-port': '0' },
    { until: 'running' },
    { compress: 'zstd' },
    { 'rate-limit': '1M' },
    { 'no-checksum': true },
    { tls: true },
    { 'key-file': 'key' },
  ]) {
    const { message } = throwsFault('USAGE', () => remoteProxyOf({ ...proxy, ...odd }))
    assert.ok(message.startsWith(`--wire criu-remote and --${Object.keys(odd)[0]}`), message)
  }
  for (const odd of [{ snapshot: 'a' }, { restore: true }, { keep: true }, { 'release-early': true }, { tls: true }]) {
    const { message } = throwsFault('USAGE', () => isRemoteCache({ ...cache, ...odd }))
    assert.ok(message.startsWith(`--wire criu-remote and --${Object.keys(odd)[0]}`), message)
  }
})

test.run()
