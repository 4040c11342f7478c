// The chain by frida's interceptor. `chain` is put before this: addresses by name.

// Static probes are no functions; what surrounds them has the same text.
// struct _qemuMonitorMessage: int txFD; const char *txBuffer; ...
Interceptor.attach(ptr(chain.monitorSend), {
  onEnter(args) { send('send ' + args[1].add(8).readPointer().readUtf8String()); }
});
Interceptor.attach(ptr(chain.monitorLine), {
  onEnter(args) { send('reply ' + args[1].readUtf8String()); }
});

function numbers(address, count) {
  const found = [];
  for (let i = 0; i < count; i++) found.push(address.add(8 * i).readU64().toString());
  return found;
}

for (const [name, address] of Object.entries(chain.functions)) {
  Interceptor.attach(ptr(address), {
    onEnter(args) {
      const said = ['enter', name];
      if (name === chain.api) {
        this.pointer = args[2];
        said.push(args[0].add(32).readPointer().readUtf8String(), args[1].readUtf8String());
      } else if (name === chain.gather) {
        this.pointer = this.context.rcx;
      }
      send(said.join(' '));
    },
    onLeave(result) {
      const said = ['exit', name, result.toInt32()];
      if (name === chain.api) said.push(...numbers(this.pointer, 3));
      if (name === chain.gather) {
        const stats = this.pointer.readPointer();
        const found = numbers(stats, 13);
        found[11] = stats.add(88).readU8();
        said.push(...found);
      }
      send(said.join(' '));
    }
  });
}
