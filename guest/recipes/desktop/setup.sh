# Configures the desktop. Run by `sh -eu` as root in the root file system, without network access.

# The folder in which the SDKs expect noVNC.
ln -s /usr/share/novnc /opt/noVNC
test -x /opt/noVNC/utils/novnc_proxy

# The panel's default, which XFCE would ask for at the first start.
settings=/etc/xdg/xfce4/xfconf/xfce-perchannel-xml
mkdir -p "$settings"
cp /etc/xdg/xfce4/panel/default.xml "$settings/xfce4-panel.xml"

for program in Xvfb xdpyinfo startxfce4 xrandr xdotool scrot xdg-open gtk-launch netstat x11vnc websockify; do
    command -v "$program" > /dev/null || { echo "the program $program is missing"; exit 1; }
done
